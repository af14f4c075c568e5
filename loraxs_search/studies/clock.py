"""Time as a lease and a copy see it, so that tests can hold it still."""

from __future__ import annotations

import time


class Clock:
    """The monotonic clock of this process: it says how long something took, and is compared with no other."""

    def now(self) -> float:
        """Return seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)
