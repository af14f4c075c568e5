from __future__ import annotations

from loraxs_search.search.hosts import pool
from loraxs_search.search.hosts.pool import HostDirectory


def test_a_lost_host_is_ended_before_another_takes_its_device(monkeypatch):
    """It may be one that a cut network keeps from its caller, with the base in the device's memory."""
    killed = []
    monkeypatch.setattr(pool, "kill", killed.append)
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
