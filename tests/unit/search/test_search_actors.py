"""What a host's process sees to before it trains."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from loraxs_search.errors import ClusterError, TargetModulesError, TaskDataError
from loraxs_search.records import BaseModel, BaseModelRef, DataSource, HostInfo, LinearModule, SearchPlan, Task
from loraxs_search.search import actors, crew, pool, probe
from loraxs_search.search.actors import MAX_CALLERS, HostActor, HostOrder, callers, check_versions
from loraxs_search.search.placement import Node

OTHER = Task("other", "sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",))
TASK = Task("t", "sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",))
ORDER = HostOrder(BaseModelRef("base"), "float32", 1, False, (8, 4))


def test_versions_like_the_drivers_are_fine() -> None:
    check_versions("10.0.0.7", probe.versions())
    check_versions("10.0.0.7", probe.versions() | {"mlflow": "2.0.0"})  # only the driver needs it


@pytest.mark.parametrize("package", ["loraxs-search", "ray", "torch", "transformers", "peft", "datasets"])
def test_another_version_is_refused_with_node_package_and_both(package: str) -> None:
    here = re.escape(probe.versions()[package])
    with pytest.raises(ClusterError, match=rf"10\.0\.0\.7 has {package} {here}, the driver has 0\.0\.1\.") as caught:
        check_versions("10.0.0.7", probe.versions() | {package: "0.0.1"})
    assert "--runtime-env" in (caught.value.hint or "")


def test_a_node_without_the_rows_is_told_as_the_nodes_fault_to_its_trials() -> None:
    def make(*_: Any) -> Any:
        raise TaskDataError("rows.csv must be there.", hint="put it there")

    host = HostActor.__ray_metadata__.modified_class(replace(ORDER, make=make), 1, "10.0.0.7")
    with pytest.raises(ClusterError, match=r"but 10\.0\.0\.7 is not: rows.csv must be there\.") as caught:
        host.advance(None, 4, None, TASK)
    assert caught.value.hint == "put it there"
    with pytest.raises(TaskDataError):  # asked before any trial, it is the space's
        host.info(TASK)


def test_a_node_without_the_rows_of_a_second_task_is_told_so_too() -> None:
    class Host:
        def info(self, task: Task) -> None:
            if task is OTHER:
                raise TaskDataError("other.csv must be there.")

        def advance(self, spec: Any, until: int, snapshot: Any, task: Task) -> str:
            return task.name

    order = replace(ORDER, make=lambda *_: Host())
    host = HostActor.__ray_metadata__.modified_class(order, 1, "10.0.0.7")
    assert host.advance(None, 4, None, TASK) == "t"
    with pytest.raises(ClusterError, match=r"but 10\.0\.0\.7 is not: other.csv must be there\."):
        host.advance(None, 4, None, OTHER)


INFO = HostInfo(BaseModel("b", "/b", "0"), (), 0, "", {}, "cpu", "float32", {}, num_slots=1000)


def test_a_host_has_threads_for_its_callers_and_not_for_any_number() -> None:
    packed = replace(ORDER, packed=True, pack_size=4)
    assert callers(ORDER, 1) == 1
    assert callers(packed, 1) == 5
    assert callers(replace(packed, pack_size="auto"), 2) == 129
    assert callers(replace(packed, pack_size=100_000), 1) == MAX_CALLERS + 1  # as many threads kept it from starting


def test_no_more_trials_are_held_than_their_processes_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Host:
        def info(self, task: Task) -> HostInfo:
            return INFO

    host = HostActor.__ray_metadata__.modified_class(replace(ORDER, make=lambda *_: Host()), 1, "10.0.0.7")
    monkeypatch.setattr(actors, "available_bytes", lambda: 10 * (75 << 20))
    assert host.info(TASK) == replace(INFO, num_slots=9)
    monkeypatch.setattr(actors, "available_bytes", lambda: 0)
    assert host.info(TASK).num_slots == 1


def test_a_pack_larger_than_memory_is_a_smaller_one_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool, "living_nodes", lambda: [Node("n", 2)])
    hosts = object.__new__(pool.HostPool)
    hosts._order, hosts._device, hosts._plans = replace(ORDER, packed=True, pack_size=64), "auto", (SearchPlan(),)
    with caplog.at_level(logging.WARNING):
        assert hosts.pack_size(INFO).size == 64
        assert not caplog.text
        assert hosts.pack_size(replace(INFO, num_slots=9)).size == 9
    assert "`search.pack_size` is 64, but memory holds 9 trials at once, not 64: it is 9" in caplog.text


class FakePool:
    """Hosts whose packs refuse a layer; what was asked of them is kept."""

    def __init__(self, may_be_lone: bool) -> None:
        self.may_be_lone, self.asked = may_be_lone, list[str]()

    def train_alone(self) -> None:
        self.asked.append("train_alone")

    def info(self, task: Task) -> HostInfo:
        return replace(INFO, num_slots=1)


def crew_on(host_pool: FakePool, unpackable: frozenset[str]) -> crew.Crew:
    modules = (LinearModule("a", 4, 4), LinearModule("b", 4, 4))
    made = object.__new__(crew.Crew)
    made._pool, made._space = host_pool, SimpleNamespace(task=TASK)  # type: ignore[assignment]
    made.info, made._adaptable = replace(INFO, modules=modules, unpackable=unpackable), {"a"}
    made._see_that_trials_fit_together()
    return made


def test_a_base_that_lets_no_trials_share_passes_is_trained_trial_by_trial_unless_packs_were_asked_for() -> None:
    hosts = FakePool(may_be_lone=True)
    assert crew_on(hosts, frozenset({"a"})).info.num_slots == 1
    assert hosts.asked == ["train_alone"]
    with pytest.raises(TargetModulesError, match="a") as caught:
        crew_on(FakePool(may_be_lone=False), frozenset({"a"}))
    assert "pack_size" in str(caught.value.hint)


def test_layers_that_no_trial_adapts_keep_nobody_from_sharing_passes() -> None:
    hosts = FakePool(may_be_lone=True)
    assert crew_on(hosts, frozenset({"b"})).info.num_slots == 1000
    assert hosts.asked == []
