"""Has hosts give up trials that people have stopped, off the search's loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ray.exceptions import RayError

from loraxs_search.search.hosts.pool import HostPool

_logger = logging.getLogger(__name__)
_AGAIN_S = 1.0


class GivingUp:
    """Asks every host again and again, as long as there is a trial to give up.

    A host remembers nothing of a trial that it does not advance at the moment, and which host has it only its process
    knows. A host that is lost has given it up.
    """

    def __init__(self, pool: HostPool, study: str) -> None:
        self._pool, self._study = pool, study
        self._thread = ThreadPoolExecutor(1, "give-up")
        self._next = 0.0

    def turn(self, trial_ids: Sequence[str]) -> None:
        """Ask about these trials, unless that was done a moment ago; returns at once."""
        if trial_ids and time.monotonic() >= self._next:
            self._next = time.monotonic() + _AGAIN_S
            self._thread.submit(self._ask, [f"{self._study}/{trial_id}" for trial_id in trial_ids])

    def close(self) -> None:
        """Ask no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self, names: Sequence[str]) -> None:
        try:
            for host in self._pool.hosts():
                host.give_up(names)  # nobody waits for the answer
        except RayError as error:
            _logger.info("hosts cannot be asked to give up trials: %s", error)
