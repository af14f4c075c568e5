"""The hosts of a search: a lost one is replaced, and no search depends on how busy they are."""

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
from ray.exceptions import ActorUnschedulableError, OutOfMemoryError, RayActorError

from loraxs_search.errors import SearchInterruptedError
from loraxs_search.records.base import BaseModel, BaseModelRef
from loraxs_search.records.host import HostInfo, LargestTrial
from loraxs_search.records.search import SearchPlan
from loraxs_search.search.cluster.placement import Node
from loraxs_search.search.hosts import pool
from loraxs_search.search.hosts.host_actor import NodeUsage
from loraxs_search.search.hosts.host_config import HostConfig
from loraxs_search.search.hosts.pool import HostDirectory, HostPool, repeated

INFO = HostInfo(BaseModel("b", "/b", "0"), (), 0, "", {}, "cpu", "float32", {}, num_slots=1000)
CONFIG = HostConfig(BaseModelRef("base"), "float32", 64, LargestTrial(8, (("lora-xs", {"rank": 4}),)))


@pytest.fixture
def hosts(monkeypatch):
    """Make a pool on one node, whose directory nobody asks."""
    monkeypatch.setattr(pool, "expected_versions", dict)
    monkeypatch.setattr(pool, "living_nodes", lambda: [Node("n", 2)])
    monkeypatch.setattr(pool, "start_directory", lambda config: ("directory", None))
    return HostPool(CONFIG, [SearchPlan()])


def test_a_pack_larger_than_memory_is_a_smaller_one_with_a_warning(hosts, caplog):
    space: Any = SimpleNamespace(is_packable=True)
    with caplog.at_level(logging.WARNING):
        assert hosts.pack_size(INFO, space).size == 64
        assert not caplog.text
        assert hosts.pack_size(replace(INFO, num_slots=9), space).size == 9
        assert "`search.pack_size` is 64, but memory holds 9 trials" in caplog.text
        unpackable: Any = SimpleNamespace(is_packable=False, methods=["ia3"], search=SearchPlan(pack_size=4))
        assert hosts.pack_size(INFO, unpackable).size == 1
        assert "`search.pack_size` is 4, but trials of method ia3" in caplog.text


def test_a_lost_host_is_ended_before_another_takes_its_device(monkeypatch):
    """It may be one that a cut network keeps from its caller, with the base in the device's memory."""
    killed = list[object]()
    monkeypatch.setattr(pool, "kill", killed.append)
    monkeypatch.setattr(HostDirectory, "_create", lambda *_: object())
    directory: Any = HostDirectory(CONFIG)
    first = directory.host_for("node", None, None)
    assert directory.host_for("node", None, object()) is first
    assert killed == []
    second = directory.host_for("node", None, first)
    assert second is not first
    assert killed == [first]
    assert directory.host_for("node", None, first) is second, "another trial has lost the same one"
    assert killed == [first]


# ---- asking one host -------------------------------------------------------------------------------------------------
LOSSES = [RayActorError(), OutOfMemoryError("low"), ActorUnschedulableError("its node is gone")]


@pytest.fixture
def found(hosts, monkeypatch):
    """The hosts that were lost when another was looked for; a host is what it answers, or how it is lost."""

    def get(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(pool.ray, "get", get)
    monkeypatch.setattr(pool.ray, "wait", lambda asked, **_: (asked, []))
    return []


def ask(hosts: HostPool, found: list[Any], losses: list[Exception], look: Callable[[], None] = lambda: None) -> Any:
    """Ask hosts that are lost in these ways, one after the other, before one answers."""

    def host(lost: Any = None) -> Any:
        found.append(lost)
        return [*losses, "answer"][len(found) - 1]

    hosts.host = host  # type: ignore[method-assign]
    return hosts.ask(lambda host: host, look)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("num_losses", [0, 3])
def test_a_lost_host_is_replaced_and_the_question_asked_again(hosts, found, num_losses):
    assert ask(hosts, found, LOSSES[:num_losses]) == "answer"
    assert found == [None, *LOSSES[:num_losses]]


def test_hosts_that_keep_dying_end_it(hosts, found):
    with pytest.raises(RayActorError):
        ask(hosts, found, [*LOSSES, RayActorError()])


def test_a_host_that_never_answers_is_left_where_the_search_is_stopped(hosts, found, monkeypatch):
    looks = list[None]()

    def look() -> None:
        looks.append(None)
        if len(looks) == 3:
            raise SearchInterruptedError("stopped")

    monkeypatch.setattr(pool.ray, "wait", lambda asked, **_: ([], asked))
    with pytest.raises(SearchInterruptedError):
        ask(hosts, found, [], look)


# ---- asking all hosts ------------------------------------------------------------------------------------------------
def test_a_node_says_how_busy_it_is_under_mlflows_names():
    reader = NodeUsage()
    usage = reader.read()
    assert usage.keys() >= {
        "cpu_utilization_percentage",
        "system_memory_usage_megabytes",
        "system_memory_usage_percentage",
    }
    assert 0 < usage["system_memory_usage_percentage"] <= 100
    assert usage["system_memory_usage_megabytes"] > 10


def test_processors_are_read_since_the_reading_before(monkeypatch):
    times = namedtuple("times", "user idle iowait guest")  # as psutil has them
    readings = iter([times(100.0, 900.0, 0.0, 5.0), times(103.0, 906.0, 1.0, 5.0), times(103.0, 906.0, 1.0, 5.0)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(readings))
    reader = NodeUsage()
    assert [reader.read()["cpu_utilization_percentage"] for _ in range(2)] == [pytest.approx(30.0), 0.0]


class Asked:
    """A host that says how far its trials are, or nothing."""

    def __init__(self, *names: str, is_silent: bool = False) -> None:
        self.steps, self._names, self.is_silent = SimpleNamespace(remote=lambda: self), names, is_silent

    def answer(self) -> dict[str, int]:
        return dict.fromkeys(self._names, 3)


def test_hosts_that_hold_a_silent_trial_or_say_nothing_are_ended(hosts, monkeypatch):
    ended = list[Any]()
    monkeypatch.setattr(pool.ray, "wait", lambda asked, **_: ([host for host in asked if not host.is_silent], []))
    monkeypatch.setattr(pool.ray, "get", Asked.answer)
    monkeypatch.setattr(pool, "kill", ended.append)
    others, holds, silent, idle = Asked("s/00001", "t/00000"), Asked("s/00000"), Asked(is_silent=True), Asked()
    monkeypatch.setattr(hosts, "hosts", lambda: [others, holds, silent, idle])
    hosts.end_silent_hosts("s", ["00000"])
    assert ended == [holds, silent]
    assert hosts.steps("s") == {"00001": 3, "00000": 3}


def test_every_host_is_asked_to_give_up_trials_and_none_where_there_are_none(hosts, monkeypatch):
    asked = list[Any]()
    both: Any = [SimpleNamespace(cancel=SimpleNamespace(remote=asked.append)) for _ in range(2)]
    monkeypatch.setattr(hosts, "hosts", lambda: both)
    hosts.cancel("s", [])
    hosts.cancel("s", ["00000"])
    assert asked == [["s/00000"], ["s/00000"]]


def test_hosts_are_asked_until_the_end_whatever_goes_wrong():
    answers = iter([{"a": 1.0}, OSError("lost"), {}, {"a": 2.0}])
    recorded, enough = list[dict[str, float]](), threading.Event()

    def ask() -> dict[str, float]:
        answer = next(answers, None)
        if answer is None:
            enough.set()
            return {}
        if isinstance(answer, Exception):
            raise answer
        return answer

    with repeated(ask, 0.0, recorded.append):
        assert enough.wait(60)
    assert recorded == [{"a": 1.0}, {"a": 2.0}]
