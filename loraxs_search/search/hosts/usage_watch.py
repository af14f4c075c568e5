"""Asks hosts now and then how busy they are, off the search's loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

import ray
from ray.exceptions import RayError

from loraxs_search.search.hosts.pool import HostPool

_logger = logging.getLogger(__name__)
_EVERY_S, _WAIT_S = 15.0, 5.0
Usage = Mapping[str, Mapping[str, float]]  # readings by the address of a node


class UsageWatch:
    """A context in which a thread asks; what cannot be asked, or recorded, stops no search.

    Args:
        ask: Returns what hosts say.
        record: Called with it.
        every_s: Seconds between two questions.
    """

    def __init__(self, ask: Callable[[], Usage], record: Callable[[Usage], None], every_s: float = _EVERY_S) -> None:
        self._ask, self._record, self._every_s = ask, record, every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="usage", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(2 * _WAIT_S)

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                if (usage := self._ask()) and not self._closing.is_set():
                    self._record(usage)
            except Exception as error:  # noqa: BLE001  # curves for people: a search does without
                _logger.info("hosts cannot be asked how busy they are: %s", error)
            self._closing.wait(self._every_s)


def pool_usage(pool: HostPool) -> Usage:
    """Return what the hosts of a pool say within seconds; those of one node together."""
    usage: dict[str, dict[str, float]] = {}
    asked = [host.usage() for host in pool.hosts()]
    done, _ = ray.wait(asked, num_returns=len(asked), timeout=_WAIT_S)
    for answer in done:
        try:
            address, readings = ray.get(answer)
        except RayError:  # it is lost: the others are not
            continue
        usage.setdefault(address, {}).update(readings)
    return usage
