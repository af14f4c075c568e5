"""Who still needs a set of hosts: searches hold leases, and the hosts outlive the last one for as long as it asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

RENEW_S = 10.0
EXPIRE_S = 60.0


class Leases:
    """Leases of searches on the hosts of one directory; safe for several threads.

    A lease that is not renewed for `EXPIRE_S` has run out: its search was killed. The hosts are over once no lease is
    left and the longest time that those who left asked for is over.

    Args:
        now: A clock in seconds that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._renewed: dict[str, tuple[float, float]] = {}  # holder -> (when, how long hosts stay after it)
        self._until = now() + EXPIRE_S  # time for a first one
        self._is_new = True
        self._lock = threading.Lock()

    def renew(self, holder: str, keep_s: float) -> None:
        """Record that a search is running, and that hosts stay for `keep_s` after it."""
        with self._lock:
            if self._is_new:
                self._until, self._is_new = self._now(), False
            self._renewed[holder] = (self._now(), keep_s)

    def leave(self, holder: str) -> None:
        """Record that a search has ended."""
        with self._lock:
            _, keep_s = self._renewed.pop(holder, (0.0, 0.0))
            self._until = max(self._until, self._now() + keep_s)

    @property
    def are_over(self) -> bool:
        """Whether nobody needs the hosts any more."""
        with self._lock:
            now = self._now()
            for holder, (when, keep_s) in list(self._renewed.items()):
                if now > when + EXPIRE_S:
                    del self._renewed[holder]
                    self._until = max(self._until, when + EXPIRE_S + keep_s)
            return not self._renewed and now > self._until
