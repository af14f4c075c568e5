"""Asks hosts now and then how busy they are and how far their trials have got, off the search's loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from loraxs_search.search.hosts.pool import HostPool

_logger = logging.getLogger(__name__)
_WAIT_S = 5.0
_MAX_HOSTS = 100  # whose steps are asked for: a call takes a fraction of a millisecond, and nobody looks at more
Usage = Mapping[str, Mapping[str, float]]  # readings by the address of a node
Steps = Mapping[str, int]  # by trial
AnswerT = TypeVar("AnswerT")


class HostWatch(Generic[AnswerT]):
    """A context in which a thread asks; what cannot be asked, or recorded, stops no search.

    Args:
        ask: Returns what hosts say; nothing is recorded where that is empty.
        record: Called with it.
        every_s: Seconds between two questions.
    """

    def __init__(self, ask: Callable[[], AnswerT], record: Callable[[AnswerT], None], every_s: float) -> None:
        self._ask, self._record, self._every_s = ask, record, every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="host-watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(2 * _WAIT_S)

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                if (answer := self._ask()) and not self._closing.is_set():
                    self._record(answer)
            except Exception as error:  # noqa: BLE001  # for people who watch: a search does without
                _logger.info("hosts cannot be asked: %s", error)
            self._closing.wait(self._every_s)


def pool_usage(pool: HostPool) -> Usage:
    """Return what the hosts of a pool say within seconds; those of one node together."""
    usage: dict[str, dict[str, float]] = {}
    for address, readings in _answers([host.usage() for host in pool.hosts()]):
        usage.setdefault(address, {}).update(readings)
    return usage


def pool_steps(pool: HostPool, study: str) -> Steps:
    """Return how far the trials of a study have got on the hosts that answer within seconds; of many hosts, on some."""
    begin, steps = f"{study}/", dict[str, int]()
    for of_host in _answers([host.steps() for host in pool.hosts()[:_MAX_HOSTS]]):
        steps |= {name.removeprefix(begin): step for name, step in of_host.items() if name.startswith(begin)}
    return steps


def _answers(asked: list[ObjectRef[AnswerT]]) -> Iterator[AnswerT]:
    done, _ = ray.wait(asked, num_returns=len(asked), timeout=_WAIT_S)
    for answer in done:
        try:
            yield ray.get(answer)
        except RayError:  # the host is lost: the others are not
            continue
