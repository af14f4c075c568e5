"""A driver that is steered, killed or interrupted: `resume` ends with the same records everywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from support.shell import finished, num_reports, start, until, wait_for

import loraxs_search
from loraxs_search.errors import CommandError
from loraxs_search.manifest import verify
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.studies.folder import StudyFolder, studies_root
from loraxs_search.studies.storage import Storage
from loraxs_search.tracking.store import connect, ensure_store

# Each is a search or two from start to end.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SLOWER = ("--set", "search.trials=5", "--set", "search.max_steps=60", "--set", "search.report_every=15")

# The command line, whose driver dies as soon as a trial is stopped: its report is written, its end is not.
DIES_AT_A_STOP = """
import os, sys
from loraxs_search.cli._main import main
from loraxs_search.log.study_log import StudyLog

append = StudyLog.append
StudyLog.append = lambda self, event: (
    os._exit(9) if getattr(event, "state", "") == "PRUNED" else append(self, event)
)
sys.exit(main())
"""


@pytest.mark.long(part="faults")
def test_a_search_loses_its_hosts_and_its_driver_is_terminated_and_loses_nothing(
    in_search_home, tiny_space, agree, descendants
):
    """First its hosts are killed, then the driver, then the next one gets SIGTERM."""
    name, options = "killed", [*SLOWER, "--set", "promotion.seeds=0"]
    options += ["--set", "search.checkpoint=best", "--set", "search.metric=f1"]
    with start(in_search_home, "launch", str(tiny_space), "--name", name, *options) as driver:
        wait_for(driver, lambda: num_reports(name) >= 2)
        for pid in descendants(driver.pid, "HostActor"):
            os.kill(pid, signal.SIGKILL)
        wait_for(driver, lambda: num_reports(name) >= 6)
        driver.kill()
    folder = StudyFolder.open(name)
    before, reported = folder.journal().records, num_reports(name)
    with start(in_search_home, "resume", name) as driver:
        wait_for(driver, lambda: num_reports(name) > reported)
        driver.send_signal(signal.SIGTERM)
        _, talk = driver.communicate(timeout=120)
    assert driver.returncode == 130, talk
    assert f"loraxs-search resume {name}" in talk
    assert "Traceback" not in talk
    assert "Stack trace" not in talk
    finished(in_search_home, "resume", name)
    agree(name, 5)

    after = folder.journal().records
    for trial_id, record in before.items():
        assert after[trial_id].reports[: len(record.reports)] == record.reports
        assert after[trial_id].params == record.params
    assert TrialState.FAIL not in {record.state for record in after.values()}
    # The state of each trial's best report is its adapter, whoever trained it to there.
    complete = [record for record in after.values() if record.state is TrialState.COMPLETE]
    assert complete
    for record in complete:
        best = max(record.reports, key=lambda report: (report.metrics["f1"], -report.step))
        assert verify(folder.adapter_path(record.trial_id)).kept_step == best.step
    assert {candidate.kept_step is None for candidate in folder.candidates() or ()} == {False}


@pytest.mark.long(part="faults")
def test_a_trial_that_was_stopped_as_the_driver_died_trains_no_further(in_search_home, tiny_space, agree):
    name = "died-at-a-stop"
    command = [sys.executable, "-c", DIES_AT_A_STOP, "launch", str(tiny_space), "--name", name, *SLOWER]
    driver = subprocess.run(command, capture_output=True, text=True, check=False)
    assert driver.returncode == 9, driver.stderr
    before = StudyFolder.open(name).journal()
    stopped = before.reports[-1]
    assert before.records[stopped.trial_id].state is TrialState.RUNNING
    finished(in_search_home, "resume", name)
    agree(name, 5)
    after = StudyFolder.open(name).journal().records[stopped.trial_id]
    assert (after.state, after.reports[-1]) == (TrialState.PRUNED, stopped)
    assert f"step {stopped.step}" in after.reason


@pytest.mark.long(part="faults")
def test_kill_9_at_the_end_of_a_search_redoes_and_doubles_nothing(in_search_home, tiny_space, agree):
    """Once while refits train, and once while adapters are written."""
    name, wanted = "unconfirmed", ("--set", "promotion.seeds=3")
    folder = studies_root() / name

    def done(*patterns: str) -> dict[str, tuple[bytes, int]]:
        found = sorted(path for pattern in patterns for path in folder.glob(pattern))
        return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}

    with start(in_search_home, "launch", str(tiny_space), "--name", name, *SLOWER, *wanted) as driver:
        wait_for(driver, lambda: len(done("confirmed/*.refit.json")) >= 2)
        driver.kill()
    before = done("confirmed/*")
    assert StudyFolder.open(name).candidates() is None
    with start(in_search_home, "resume", name) as driver:
        wait_for(driver, lambda: bool(done("adapters/[0-9]*/manifest.json")))
        driver.kill()
    before |= done("confirmed/*", "adapters/[0-9]*/manifest.json")
    finished(in_search_home, "resume", name)
    agree(name, 5)
    after = done("confirmed/*", "adapters/[0-9]*/manifest.json")
    assert {file: after[file] for file in before} == before, "what was done is left alone"
    candidates = StudyFolder.open(name).candidates() or ()
    refits = {f"confirmed/{c.trial_id}.refit.json" for c in candidates if "." in c.trial_id}
    assert {file for file in after if file.endswith(".refit.json")} == refits
    assert all(len({refit.seed for refit in candidate.refits}) == 3 for candidate in candidates)
    (finalist,) = (candidate for candidate in candidates if candidate.test_metrics)
    rows = ScoredRows.from_bytes(StudyFolder.open(name).confirmed.rows_path(finalist.trial_id).read_bytes())
    assert float((rows.predictions == rows.labels).mean()) == pytest.approx(finalist.test_metrics["accuracy"])


@pytest.mark.long(part="search")
def test_a_search_is_steered_and_killed_and_grows_again_when_it_has_ended(
    in_search_home, tiny_space, agree, monkeypatch
):
    monkeypatch.setattr("loraxs_search.steering.WAIT_S", 120.0)
    name, every, steps = "grown", 20, 400
    plan = {"trials": 2, "concurrent": 1, "max_steps": steps, "report_every": every, "scheduler": "none"}
    options = [part for key, value in plan.items() for part in ("--set", f"search.{key}={value}")]
    options += ["--set", "promotion.candidates=8", "--set", "promotion.seeds=1"]
    with start(in_search_home, "launch", str(tiny_space), "--name", name, *options) as driver:
        wait_for(driver, lambda: num_reports(name) >= 1)  # one at a time: of trial 0
        cloned = loraxs_search.add_trial(name, {"learning_rate": 2e-3}, source="0")
        added = loraxs_search.add_trial(name, {"rank": 4, "learning_rate": 5e-3})
        extended = loraxs_search.extend_study(name, trials=1)
        stopped = loraxs_search.stop_trials(name, "0", now=True)
        folder = StudyFolder.open(name)
        wait_for(driver, lambda: folder.journal().records["00000"].state is TrialState.PRUNED)
        with pytest.raises(CommandError, match=r"00000 .*PRUNED"):
            loraxs_search.stop_trials(name, "00000")
        driver.kill()
        driver.communicate()
    assert {answer.state for answer in (cloned, added, extended, stopped)} == {"done"}
    before = folder.journal().records
    finished(in_search_home, "resume", name)
    records = folder.journal().records
    assert len(records) == 2 + 1 + 2, "what people asked for comes on top of the budget, which is extended"
    assert records["00000"] == before["00000"]
    assert records["00000"].reason.startswith("stopped by a person (")
    assert [record.state for record in records.values()] == [TrialState.PRUNED, *[TrialState.COMPLETE] * 4]
    (clone,) = (record for record in records.values() if record.command == cloned.command_id)
    (own,) = (record for record in records.values() if record.command == added.command_id)
    assert (own.params["rank"], own.params["learning_rate"]) == (4, 5e-3)
    assert clone.lineage == "00000"
    assert [report.step for report in clone.reports] == list(range(every, steps + 1, every))
    assert verify(folder.adapter_path(clone.trial_id)).lineage == clone.lineage

    agree(name, 5)
    first = _finalist(folder, clone)
    # ---- once more ----
    assert loraxs_search.extend_study(name, trials=1).state == "queued"
    made = _refits(folder)
    finished(in_search_home, "resume", name)
    after = folder.journal().records
    assert len(after) == 6
    assert {trial_id: after[trial_id] for trial_id in records} == records
    assert _refits(folder).items() >= made.items(), "what is known of a candidate is not made again"
    assert len(_refits(folder)) == 5
    assert folder.earlier_finalists() == (first,)
    agree(name, 6)
    assert verify(folder.adapter_path(second := _finalist(folder, clone))).test_metrics
    candidates = {each.trial_id: each for each in folder.candidates() or ()}
    assert candidates[second].earlier_finalists == (() if second == first else (first,))
    finished(in_search_home, "resume", name)
    assert len(folder.journal().records) == 6


def _finalist(folder: StudyFolder, clone: TrialRecord) -> str:
    """Return the finalist's id, once MLflow has the clone's lineage and one run of the search."""
    client = connect(folder.info.tracking_uri)
    experiment = client.get_experiment_by_name("tiny-reviews")
    runs = client.search_runs([experiment.experiment_id], f"tags.`loraxs.study` = '{folder.name}'")
    tags = {run.data.tags.get("trial_id", ""): run.data.tags for run in runs}
    assert tags[clone.trial_id]["loraxs.lineage"] == f"{folder.name}/{clone.lineage}"
    assert [run.info.status for run in runs if "trial_id" not in run.data.tags] == ["FINISHED"]
    (found,) = (each.trial_id for each in folder.candidates() or () if each.test_metrics)
    return found


def _refits(folder: StudyFolder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder.path / "confirmed").glob("*.refit.json")}


# ---- a driver's machine is lost; another one goes on from the storage: S3, or a folder that both see -----------------
@pytest.mark.long(part="storage")
@pytest.mark.parametrize(("kind", "alike"), [("s3", False), ("folder", True)], ids=["s3-elsewhere", "folder-same-path"])
def test_another_machine_goes_on_where_the_lost_one_was(kind, alike, request, tiny_space, tmp_path, monkeypatch, agree):
    first, second, place = tmp_path / "first", tmp_path / "second", tmp_path / "shared"
    place.mkdir()
    storage = ("--storage", str(place) if kind == "folder" else f"{request.getfixturevalue('s3_bucket')}/studies")
    plan = ("search.trials=10", "search.max_steps=400", "search.report_every=40", "search.scheduler=none")
    slower = [part for change in plan for part in ("--set", change)]
    monkeypatch.setenv("LORAXS_HOME", str(first))
    with start(first, "launch", str(tiny_space), "--name", "moved", *storage, *slower) as driver:
        wait_for(driver, lambda: num_reports("moved") >= 2)
        with start(second, "resume", "moved", *storage) as early:
            _, talk = early.communicate(timeout=60)
        assert early.returncode == 1
        assert "must have one driver at a time" in talk
        until(lambda: bool(Storage(storage[1]).keys("moved/snapshots")))
        driver.kill()
    before = StudyFolder.open("moved").journal().records
    assert StudyFolder.open("moved").candidates() is None, "it was in the middle"
    first.rename(tmp_path / "lost")
    if alike:  # a machine with an embedded store of its own, and all homes are called alike
        second = first
        ensure_store(resolve_uri())

    monkeypatch.setenv("LORAXS_HOME", str(second))
    out, talk = finished(second, "resume", "moved", *storage)
    assert "watching for 30 s whether it still does" in talk, "another state folder is another place"
    assert "COMPLETE" in out
    agree("moved", 10)
    folder = StudyFolder.open("moved")
    after = folder.journal().records
    assert {trial_id: after[trial_id].params for trial_id in before} == {k: r.params for k, r in before.items()}
    assert folder.info.tracking_uri == f"sqlite:///{second}/mlflow.db"
    assert folder.candidates()
