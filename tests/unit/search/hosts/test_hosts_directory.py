from __future__ import annotations

import pytest

from loraxs_search.search.hosts import directory
from loraxs_search.search.hosts.directory import EXPIRE_S, HostDirectory, Leases


class Clock:
    time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(clock: Clock) -> Leases:
    return Leases(clock)


def test_hosts_stay_while_a_search_renews_its_lease(clock: Clock, leases: Leases) -> None:
    for _ in range(100):
        leases.renew("a", keep_s=0.0)
        clock.time += EXPIRE_S / 2
        assert not leases.are_over


def test_hosts_stay_as_long_as_the_last_search_asked_for(clock: Clock, leases: Leases) -> None:
    leases.renew("long", keep_s=600.0)
    leases.renew("short", keep_s=100.0)
    leases.leave("long")
    clock.time += 300.0
    leases.renew("short", keep_s=100.0)
    leases.leave("short")
    clock.time += 299.0
    assert not leases.are_over
    clock.time += 2.0
    assert leases.are_over


def test_the_lease_of_a_killed_search_runs_out(clock: Clock, leases: Leases) -> None:
    leases.renew("killed", keep_s=100.0)
    clock.time += EXPIRE_S + 99.0
    assert not leases.are_over
    clock.time += 2.0
    assert leases.are_over


def test_hosts_that_nobody_ever_leased_end_too(clock: Clock, leases: Leases) -> None:
    assert not leases.are_over
    clock.time += EXPIRE_S + 1.0
    assert leases.are_over


def test_to_leave_twice_or_unknown_is_no_fault(clock: Clock, leases: Leases) -> None:
    leases.leave("nobody")
    leases.renew("a", keep_s=0.0)
    leases.leave("a")
    leases.leave("a")
    clock.time += 1.0
    assert leases.are_over, "nobody asked for more"


def test_a_lost_host_is_ended_before_another_takes_its_device(monkeypatch):
    """It may be one that a cut network keeps from its caller, with the base in the device's memory."""
    killed = []
    monkeypatch.setattr(directory, "kill", killed.append)
    monkeypatch.setattr(HostDirectory, "_create", lambda *_: object())
    hosts = HostDirectory(None)
    first = hosts.host_for("node", None)
    assert hosts.host_for("node", None, lost=object()) is first
    assert killed == []
    second = hosts.host_for("node", None, lost=first)
    assert second is not first
    assert killed == [first]
    assert hosts.host_for("node", None, lost=first) is second, "another trial has lost the same one"
    assert killed == [first]
