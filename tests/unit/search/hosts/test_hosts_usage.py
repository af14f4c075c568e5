"""How busy hosts are: read on their nodes, asked off the loop, and no search depends on it."""

from __future__ import annotations

import threading

from loraxs_search.search.hosts.node_usage import node_usage
from loraxs_search.search.hosts.usage_watch import Usage, UsageWatch


def test_a_node_says_how_busy_it_is_under_mlflows_names() -> None:
    usage = node_usage()
    assert usage.keys() >= {
        "cpu_utilization_percentage",
        "system_memory_usage_megabytes",
        "system_memory_usage_percentage",
    }
    assert 0 < usage["system_memory_usage_percentage"] <= 100
    assert usage["system_memory_usage_megabytes"] > 10


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

    with UsageWatch(ask, recorded.append, every_s=0.0):
        assert enough.wait(60)
    assert recorded == [{"a": {"x": 1.0}}, {"a": {"x": 2.0}}]
