"""What a host's process sees to before it trains."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from support.studies import TASK
from support.toys import HYPERPARAMETERS

from loraxs_search.errors import ClusterError, HomeError, TaskDataError
from loraxs_search.records.adapter import HostInfo, LargestTrial
from loraxs_search.records.task import BaseModel, BaseModelRef, Identity, Task
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


class Host:
    """Trains on the weights and on the rows, by task, that it was made with."""

    def __init__(self, base: str, rows: dict[str, str | None]) -> None:
        self._base, self._rows = base, rows

    def info(self, task: Task) -> HostInfo:
        if (rows := self._rows[task.name]) is None:
            raise TaskDataError(f"{task.name}.csv must be there.", hint="put it there")
        return replace(INFO, base=BaseModel("b", "/b", self._base), data_fingerprint=rows)

    def answered(self, *given: Any) -> tuple[str, str | None]:
        return self._base, self._rows[given[-1].name]

    advance = answer_without_adapter = answered


def actor(
    base: str = "base", t: str | None = "rows of t", other: str | None = "rows of other", **versions: str
) -> HostActor:
    """Return a host's process on a node with these files, of a driver with these versions."""
    config = replace(CONFIG, make=lambda *_: Host(base, {"t": t, "other": other}), versions=with_python() | versions)
    return HostActor(config, 1, "10.0.0.7")


def advance(host: HostActor, spec: TrialSpec, task: Task) -> Any:
    return host.serve(lambda host: host.advance(spec, 4, None, task), task, spec, None)


def answer_without_adapter(host: HostActor, spec: TrialSpec, task: Task) -> Any:
    return host.serve(lambda host: host.answer_without_adapter("test", range(3), 0, task), task, None, spec.identity)


def begun_with(base: str, rows: str) -> TrialSpec:
    return replace(SPEC, identity=Identity(base, rows))


@pytest.mark.parametrize(
    ("call", "files", "differs"),
    [
        (advance, {"t": "edited"}, "data fingerprint edited, not rows of t"),
        (advance, {"base": "other weights"}, "weight digest other weights, not base"),
        (answer_without_adapter, {"t": "edited"}, "data fingerprint edited, not rows of t"),
    ],
)
def test_a_node_with_other_files_than_the_study_began_with_is_refused_with_both_values(call, files, differs):
    """Trials, refits, confirmations and the untouched base go through these calls."""
    spec = begun_with("base", "rows of t")
    assert call(actor(), spec, TASK) == ("base", "rows of t")
    with pytest.raises(ClusterError, match=rf"but 10\.0\.0\.7 is not: it has {differs}\.") as caught:
        call(actor(**files), spec, TASK)
    assert "launch a new study" in (caught.value.hint or "")


def test_a_node_without_the_rows_is_at_fault_to_its_trials():
    with pytest.raises(ClusterError, match=r"10\.0\.0\.7 .*t\.csv") as caught:
        advance(actor(t=None), SPEC, TASK)
    assert caught.value.hint == "put it there"
    with pytest.raises(TaskDataError):  # asked before any trial, it is the space's
        actor(t=None).info(TASK)
    host = actor(other=None)
    assert advance(host, SPEC, TASK) == ("base", "rows of t")
    with pytest.raises(ClusterError, match=r"10\.0\.0\.7 .*other\.csv"):
        advance(host, SPEC, OTHER)


def test_studies_that_share_a_host_are_each_held_to_their_own_rows():
    host = actor()
    assert [host.info(task).data_fingerprint for task in (TASK, OTHER)] == ["rows of t", "rows of other"]
    assert advance(host, begun_with("base", "rows of other"), OTHER) == ("base", "rows of other")
    with pytest.raises(ClusterError, match="data fingerprint rows of t, not rows of other"):
        advance(host, begun_with("base", "rows of other"), TASK)


def test_another_version_is_refused_with_node_package_and_both():
    actor(mlflow="2.0.0").info(TASK)  # only the driver needs MLflow
    with pytest.raises(ClusterError, match=r"10\.0\.0\.7 has peft .*, the driver has 0\.0\.1\."):
        actor(peft="0.0.1").info(TASK)


def test_a_disk_that_is_full_is_named_with_its_node():
    def full(_: object) -> None:
        raise HomeError("No space left.", hint="free some space")

    with pytest.raises(HomeError, match=r"On node 10\.0\.0\.7: No space left") as caught:
        actor().serve(full, TASK, SPEC, None)
    assert caught.value.hint == "free some space"
