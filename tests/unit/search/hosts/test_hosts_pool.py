"""How many trials share a device, and what of that people hear."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from loraxs_search.records import BaseModel, BaseModelRef, HostInfo, LargestTrial, SearchPlan
from loraxs_search.search.cluster.placement import Node
from loraxs_search.search.hosts import pool
from loraxs_search.search.hosts.host_config import HostConfig

INFO = HostInfo(BaseModel("b", "/b", "0"), (), 0, "", {}, "cpu", "float32", {}, num_slots=1000)


@pytest.fixture
def make_pool(monkeypatch: pytest.MonkeyPatch) -> Callable[[HostConfig], pool.HostPool]:
    """Make a pool on one node, whose directory nobody asks."""
    ray: Any = SimpleNamespace(versions=dict, installers=dict)
    monkeypatch.setattr(pool, "runtime_env", ray)
    monkeypatch.setattr(pool, "living_nodes", lambda: [Node("n", 2)])
    monkeypatch.setattr(pool, "nodes_to_come", list)
    monkeypatch.setattr(pool, "start_directory", lambda config, warm_name: ("directory", None))
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
