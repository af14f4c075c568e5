"""How many trials share a device, and how busy hosts are: asked off the loop, and no search depends on it."""

from __future__ import annotations

import logging
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from loraxs_search.records.base import BaseModel, BaseModelRef
from loraxs_search.records.host import HostInfo, LargestTrial
from loraxs_search.records.search import SearchPlan
from loraxs_search.search.cluster.placement import Node
from loraxs_search.search.hosts import pool
from loraxs_search.search.hosts.host_actor import NodeUsage
from loraxs_search.search.hosts.host_config import HostConfig
from loraxs_search.search.hosts.pool import HostWatch, Usage

INFO = HostInfo(BaseModel("b", "/b", "0"), (), 0, "", {}, "cpu", "float32", {}, num_slots=1000)


@pytest.fixture
def make_pool(monkeypatch: pytest.MonkeyPatch) -> Callable[[HostConfig], pool.HostPool]:
    """Make a pool on one node, whose directory nobody asks."""
    ray: Any = SimpleNamespace(versions=dict)
    monkeypatch.setattr(pool, "runtime_env", ray)
    monkeypatch.setattr(pool, "living_nodes", lambda: [Node("n", 2)])
    monkeypatch.setattr(pool, "start_directory", lambda config: ("directory", None))
    return lambda config: pool.HostPool(config, [SearchPlan()])


def test_a_pack_larger_than_memory_is_a_smaller_one_with_a_warning(
    make_pool: Callable[[HostConfig], pool.HostPool], caplog: pytest.LogCaptureFixture
) -> None:
    hosts = make_pool(
        HostConfig(BaseModelRef("base"), "float32", 64, True, LargestTrial(8, (("lora-xs", {"rank": 4}),)))
    )
    with caplog.at_level(logging.WARNING):
        assert hosts.pack_size(INFO).size == 64
        assert not caplog.text
        assert hosts.pack_size(replace(INFO, num_slots=9)).size == 9
    assert "`search.pack_size` is 64, but memory holds 9 trials at once, not 64: it is 9" in caplog.text


def test_a_node_says_how_busy_it_is_under_mlflows_names() -> None:
    reader = NodeUsage()
    usage = reader.read()
    assert usage.keys() >= {
        "cpu_utilization_percentage",
        "system_memory_usage_megabytes",
        "system_memory_usage_percentage",
    }
    assert 0 < usage["system_memory_usage_percentage"] <= 100
    assert usage["system_memory_usage_megabytes"] > 10


def test_processors_are_read_since_the_reading_before(monkeypatch: pytest.MonkeyPatch) -> None:
    times = namedtuple("times", "user idle iowait guest")  # as psutil has them
    readings = iter([times(100.0, 900.0, 0.0, 5.0), times(103.0, 906.0, 1.0, 5.0), times(103.0, 906.0, 1.0, 5.0)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(readings))
    reader = NodeUsage()
    assert [reader.read()["cpu_utilization_percentage"] for _ in range(2)] == [pytest.approx(30.0), 0.0]


class Asked:
    """A host that says how far its trials are, or nothing."""

    def __init__(self, *names: str, is_silent: bool = False) -> None:
        self.actor, self._names, self.is_silent = self, names, is_silent

    def steps(self) -> Any:
        return self

    def answer(self) -> dict[str, int]:
        return dict.fromkeys(self._names, 3)


def test_hosts_that_hold_a_silent_trial_or_say_nothing_are_ended(
    make_pool: Callable[[HostConfig], pool.HostPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(asked: list[Asked], **_: object) -> tuple[list[Asked], list[Asked]]:
        return [host for host in asked if not host.is_silent], []

    ended = list[Any]()
    monkeypatch.setattr(pool.ray, "wait", wait)
    monkeypatch.setattr(pool.ray, "get", Asked.answer)
    monkeypatch.setattr(pool, "kill", ended.append)
    others, holds, silent, idle = Asked("s/00001", "t/00000"), Asked("s/00000"), Asked(is_silent=True), Asked()
    made = make_pool(HostConfig(BaseModelRef("base"), "float32", 2, True, LargestTrial(8, ())))
    monkeypatch.setattr(made, "hosts", lambda: [others, holds, silent, idle])
    made.end_silent_hosts(["s/00000"])
    assert ended == [holds, silent]


def test_hosts_are_asked_until_the_end_whatever_goes_wrong() -> None:
    answers = iter([{"a": {"x": 1.0}}, OSError("lost"), {}, {"a": {"x": 2.0}}])
    recorded, enough = list[Usage](), threading.Event()

    def ask() -> Usage:
        answer = next(answers, None)
        if answer is None:
            enough.set()
            return {}
        if isinstance(answer, Exception):
            raise answer
        return answer

    with HostWatch(ask, recorded.append, every_s=0.0):
        assert enough.wait(60)
    assert recorded == [{"a": {"x": 1.0}}, {"a": {"x": 2.0}}]
