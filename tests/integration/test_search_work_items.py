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


class Number:
    def __init__(self, number: int, times: int = 1) -> None:
        self.number, self._times = number, times
        self.answers: list[str] = []
        self.error: Exception | None = None

    def work(self) -> WorkItem:
        for _ in range(self._times):
            try:
                number, name = yield lambda host: host.work.remote(self.number)  # type: ignore[attr-defined]
            except TaskDataError as error:
                self.error = error
                return
            assert number == self.number
            self.answers.append(name)


def over(pool: Any, items: list[Number], on_loop_step: Any, **options: Any) -> None:
    map_over_hosts(pool, [item.work() for item in items], on_loop_step, **options)


def go_on() -> None: ...


def test_every_piece_is_done_once_and_every_host_has_some(ray_here):
    items = [Number(n) for n in range(12)]
    over(workers(Worker.remote("a"), Worker.remote("b")), items, go_on)
    assert all(len(item.answers) == 1 for item in items)
    assert {name for item in items for name in item.answers} == {"a", "b"}


def test_a_piece_is_asked_for_until_it_is_done_and_at_once_where_passes_are_shared(ray_here):
    items = [Number(n, times=3) for n in range(4)]
    over(workers(Worker.remote("a")), items, go_on, at_once=4)
    assert [item.answers for item in items] == [["a"] * 3] * 4


def test_a_host_that_dies_is_replaced_and_its_piece_is_not_lost(ray_here):
    items = [Number(n) for n in range(6)]
    over(workers(Worker.remote("a", fatal=True), Worker.remote("b")), items, go_on)
    assert all(len(item.answers) == 1 for item in items)
    assert "another" in {name for item in items for name in item.answers}


def test_what_a_host_cannot_do_is_the_pieces_own_fault_and_the_others_go_on(ray_here):
    items = [Number(-1), Number(1)]
    over(workers(Worker.remote("a")), items, go_on)
    assert isinstance(items[0].error, TaskDataError)
    assert items[1].answers == ["a"]


def test_it_stops_when_the_search_is_stopped(ray_here):
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        over(workers(Worker.remote("a")), [Number(1)], stop)
    over(workers(), [], stop)
