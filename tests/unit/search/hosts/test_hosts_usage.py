"""How busy hosts are: read on their nodes, asked off the loop, and no search depends on it."""

from __future__ import annotations

import threading
from collections import namedtuple

import psutil
import pytest

from loraxs_search.search.hosts.host_watch import HostWatch, Usage
from loraxs_search.search.hosts.node_usage import NodeUsage


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
