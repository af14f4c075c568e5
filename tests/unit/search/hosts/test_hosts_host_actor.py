"""What a host's process sees to before it trains."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.studies import TASK
from support.toys import HYPERPARAMETERS

from loraxs_search.errors import ClusterError, HomeError, TaskDataError
from loraxs_search.records.base import BaseModel, BaseModelRef, Identity
from loraxs_search.records.host import HostInfo, LargestTrial
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search.hosts.host_actor import HostActor
from loraxs_search.search.hosts.host_config import HostConfig
from loraxs_search.versions import with_python

# A host one of whose threads has no memory to begin.
THREADLESS = """
import threading
from loraxs_search.search.hosts import host_actor

host_actor.UNBORN_S = 0.1
host_actor.HostActor(None, 1, "10.0.0.7")

class Thread(threading.Thread):
    def _bootstrap_inner(self):
        raise MemoryError

Thread(daemon=True).start()
"""
OTHER = replace(TASK, name="other")
CONFIG = HostConfig(BaseModelRef("base"), "float32", 1, LargestTrial(8, (("lora-xs", {"rank": 4}),)))


def test_a_host_one_of_whose_threads_never_begins_ends_where_others_would_wait_for_ever():
    done = subprocess.run([sys.executable, "-c", THREADLESS], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "MemoryError" in done.stderr, "of the thread; nobody has caught it"


# ---- identity --------------------------------------------------------------------------------------------------------
INFO = HostInfo(BaseModel("b", "/b", "0"), (), 0, "", {}, "cpu", "float32", {}, num_slots=1000)
SPEC = TrialSpec("00000", {}, HYPERPARAMETERS)


class Disk:
    """A node's files: weights, and the rows of each task, by content."""

    def __init__(self) -> None:
        self.base = "base"
        self.rows: dict[str, str | None] = {"t": "rows of t", "other": "rows of other"}
        self.num_loads = 0

    def make(self, config: HostConfig, task: Task, threads: int) -> Any:
        self.num_loads += 1
        return LoadedHost(self)


class LoadedHost:
    """Keeps what it has read, and trains on that."""

    def __init__(self, disk: Disk) -> None:
        self._disk, self._base = disk, disk.base
        self._rows: dict[str, str] = {}

    def info(self, task: Task) -> HostInfo:
        if task.name not in self._rows:
            rows = self._disk.rows[task.name]
            if rows is None:
                raise TaskDataError(f"{task.name}.csv must be there.", hint="put it there")
            self._rows[task.name] = rows
        return replace(INFO, base=BaseModel("b", "/b", self._base), data_fingerprint=self._rows[task.name])

    def advance(self, spec: TrialSpec, until: int, snapshot: Any, task: Task) -> tuple[str, str]:
        return self._base, self._rows[task.name]

    def confirm(self, spec: TrialSpec, snapshot: bytes, task: Task) -> tuple[str, str]:
        return self._base, self._rows[task.name]

    def answer_without_adapter(self, split: str, rows: range, shots: int, task: Task) -> tuple[str, str]:
        return self._base, self._rows[task.name]


def actor(disk: Disk) -> HostActor:
    return HostActor(replace(CONFIG, make=disk.make), 1, "10.0.0.7")


def advance(host: HostActor, spec: TrialSpec, task: Task) -> Any:
    return host.serve(lambda host: host.advance(spec, 4, None, task), task, spec, None)


def confirm(host: HostActor, spec: TrialSpec, task: Task) -> Any:
    return host.serve(lambda host: host.confirm(spec, b"", task), task, spec, None)


def answer_without_adapter(host: HostActor, spec: TrialSpec, task: Task) -> Any:
    return host.serve(lambda host: host.answer_without_adapter("test", range(3), 0, task), task, None, spec.identity)


def begun_with(base: str, rows: str) -> TrialSpec:
    return replace(SPEC, identity=Identity(base, rows))


@pytest.mark.parametrize(
    ("call", "changed"), [(advance, "rows"), (confirm, "weights"), (answer_without_adapter, "rows")]
)
def test_a_node_with_other_files_than_the_study_began_with_is_refused_with_both_values(call, changed):
    """Trials, refits, confirmations and the untouched base go through these calls."""
    disk = Disk()
    if changed == "rows":
        disk.rows["t"], differs = "edited", "data fingerprint edited, not rows of t"
    else:
        disk.base, differs = "other weights", "weight digest other weights, not base"
    host, spec = actor(disk), begun_with("base", "rows of t")
    with pytest.raises(ClusterError, match=rf"but 10\.0\.0\.7 is not: it has {differs}\.") as caught:
        call(host, spec, TASK)
    assert "launch a new study" in (caught.value.hint or "")


def test_a_node_without_the_rows_is_at_fault_to_its_trials():
    disk = Disk()
    host, disk.rows["t"] = actor(disk), None
    with pytest.raises(ClusterError, match=r"10\.0\.0\.7 .*t\.csv") as caught:
        advance(host, SPEC, TASK)
    assert caught.value.hint == "put it there"
    with pytest.raises(TaskDataError):  # asked before any trial, it is the space's
        host.info(TASK)
    disk.rows["t"], disk.rows["other"] = "rows of t", None
    assert advance(host, SPEC, TASK) == ("base", "rows of t")
    with pytest.raises(ClusterError, match=r"10\.0\.0\.7 .*other\.csv"):
        advance(host, SPEC, OTHER)


def test_studies_that_share_a_host_are_each_held_to_their_own_rows():
    disk = Disk()
    host = actor(disk)
    assert [host.info(task).data_fingerprint for task in (TASK, OTHER)] == ["rows of t", "rows of other"]
    assert advance(host, begun_with("base", "rows of other"), OTHER) == ("base", "rows of other")
    with pytest.raises(ClusterError, match="data fingerprint rows of t, not rows of other"):
        advance(host, begun_with("base", "rows of other"), TASK)
    assert advance(host, begun_with("base", "rows of t"), TASK) == ("base", "rows of t")


def test_a_host_of_lone_trials_is_not_loaded_again_to_score_candidates():
    disk, study = Disk(), replace(TASK, validation_rows=10, report_metric="f1", report_direction="maximize")
    host = actor(disk)
    for task in (study, study.for_candidates, study):
        assert advance(host, begun_with("base", "rows of t"), task) == ("base", "rows of t")
    assert disk.num_loads == 1


def test_another_version_is_refused_with_node_package_and_both():
    disk, own = Disk(), with_python()
    HostActor(replace(CONFIG, make=disk.make, versions=own | {"mlflow": "2.0.0"}), 1, "10.0.0.7").info(TASK)
    assert disk.num_loads == 1, "only the driver needs MLflow"
    other = HostActor(replace(CONFIG, make=disk.make, versions=own | {"peft": "0.0.1"}), 1, "10.0.0.7")
    with pytest.raises(ClusterError, match=r"10\.0\.0\.7 has peft .*, the driver has 0\.0\.1\.") as caught:
        other.info(TASK)
    assert "--runtime-env" in (caught.value.hint or "")


def test_a_disk_that_is_full_is_named_with_its_node():
    disk = Disk()

    def full(*_: object) -> None:
        raise HomeError("No space left.", hint="free some space")

    disk.make = lambda *_: SimpleNamespace(advance=full, info=lambda *_, **__: INFO)  # type: ignore[method-assign]
    host = actor(disk)
    with pytest.raises(HomeError, match=r"On node 10\.0\.0\.7: No space left") as caught:
        advance(host, SPEC, TASK)
    assert caught.value.hint == "free some space"
