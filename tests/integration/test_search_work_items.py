"""Pieces of work on real actors: map_over_hosts over all of them, and asked of another where one dies."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from loraxs_search.errors import TaskDataError
from loraxs_search.search.driver.work_items import WorkItem, map_over_hosts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


@ray.remote(num_cpus=0)
class Worker:
    """Answers with its own name; `fatal` ends its process at the first question."""

    def __init__(self, name: str, fatal: bool = False) -> None:
        self._name, self._fatal = name, fatal

    def work(self, number: int) -> tuple[int, str]:
        if self._fatal:
            os._exit(1)
        if number < 0:
            raise TaskDataError("a number must not be negative")
        return number, self._name


def workers(*actors: Any) -> Any:
    """Return what `map_over_hosts` asks for hosts."""
    return SimpleNamespace(hosts=lambda: actors, host=lambda lost: Worker.remote("another"))


def test_work_is_done_once_on_every_host_also_where_one_dies_or_cannot(ray_here):
    """A host that dies is replaced, and what one cannot do is the item's own fault."""
    done, errors = list[tuple[int, str]](), list[Exception]()

    def item(number: int) -> WorkItem:
        for _ in range(2):
            try:
                answer = yield lambda host: host.work.remote(number)  # type: ignore[attr-defined]
            except TaskDataError as error:
                errors.append(error)
                return
            assert answer[0] == number
            done.append(answer)

    pool = workers(Worker.remote("a", fatal=True), Worker.remote("b"))
    map_over_hosts(pool, [item(number) for number in (-1, *range(12))], lambda: None, at_once=2)
    assert sorted(number for number, _ in done) == sorted([*range(12)] * 2)
    assert {name for _, name in done} == {"another", "b"}
    assert len(errors) == 1

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_over_hosts(workers(Worker.remote("a")), [item(1)], stop)
    map_over_hosts(workers(), [], stop)
