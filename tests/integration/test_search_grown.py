"""A search that people steer from another process, killed in between, and again once it has ended."""

from __future__ import annotations

import pytest
from support.shell import finished, start, wait_for

import loraxs_search
from loraxs_search.errors import CommandError
from loraxs_search.records.trial import TrialState
from loraxs_search.registry.manifest import verify
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tracking.store import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NAME, EVERY, STEPS = "grown", 20, 400
PLAN = {"trials": 2, "concurrent": 1, "max_steps": STEPS, "report_every": EVERY, "scheduler": "none"}
OVERRIDES = [part for name, value in PLAN.items() for part in ("--set", f"search.{name}={value}")]
OVERRIDES += ["--set", "promotion.candidates=8", "--set", "promotion.seeds=1"]


def has_reported(trial_id: str) -> bool:
    if not StudyFolder.exists(NAME):
        return False
    record = StudyFolder.open(NAME).journal().records.get(trial_id)
    return record is not None and bool(record.reports)


@pytest.mark.long(part="search")
def test_a_search_is_steered_and_killed_and_grows_again_when_it_has_ended(
    in_search_home, tiny_space, agree, monkeypatch
):
    monkeypatch.setattr("loraxs_search.steering.WAIT_S", 120.0)
    with start(in_search_home, "launch", str(tiny_space), "--name", NAME, *OVERRIDES) as driver:
        wait_for(driver, lambda: has_reported("00000"))
        cloned = loraxs_search.add_trial(NAME, {"learning_rate": 2e-3}, source="0")
        added = loraxs_search.add_trial(NAME, {"rank": 4, "learning_rate": 5e-3})
        extended = loraxs_search.extend_study(NAME, trials=1)
        stopped = loraxs_search.stop_trials(NAME, "0", now=True)
        folder = StudyFolder.open(NAME)
        wait_for(driver, lambda: folder.journal().records["00000"].state is TrialState.PRUNED)
        with pytest.raises(CommandError, match=r"00000 .*PRUNED"):
            loraxs_search.stop_trials(NAME, "00000")
        driver.kill()
        driver.communicate()
    assert {answer.state for answer in (cloned, added, extended, stopped)} == {"done"}
    before = folder.journal().records
    finished(in_search_home, "resume", NAME)
    records = folder.journal().records
    assert len(records) == 2 + 1 + 2, "what people asked for comes on top of the budget, which is extended"
    assert records["00000"] == before["00000"]
    assert records["00000"].reason.startswith("stopped by a person (")
    assert [record.state for record in records.values()] == [TrialState.PRUNED, *[TrialState.COMPLETE] * 4]
    (clone,) = (record for record in records.values() if record.command == cloned.command_id)
    (own,) = (record for record in records.values() if record.command == added.command_id)
    assert (own.params["rank"], own.params["learning_rate"]) == (4, 5e-3)
    assert clone.lineage == "00000"
    assert [report.step for report in clone.reports] == list(range(EVERY, STEPS + 1, EVERY))
    assert verify(folder.adapter_path(clone.trial_id)).lineage == clone.lineage
    agree(NAME, 5)
    _check_tracked(folder, clone.trial_id)
    first = _finalist(folder)
    # ---- once more ----
    assert loraxs_search.extend_study(NAME, trials=1).state == "queued"
    refits = {path.name: path.stat().st_mtime_ns for path in (folder.path / "confirmed").glob("*.refit.json")}
    finished(in_search_home, "resume", NAME)
    after = folder.journal().records
    assert len(after) == 6
    assert {name: after[name] for name in records} == records
    kept = {path.name: path.stat().st_mtime_ns for path in (folder.path / "confirmed").glob("*.refit.json")}
    assert {name: kept[name] for name in refits} == refits, "what is known of a candidate is not made again"
    assert len(kept) == 5
    assert folder.earlier_finalists() == (first,)
    finalist = _finalist(folder)
    assert verify(folder.adapter_path(finalist)).test_metrics
    candidates = {each.trial_id: each for each in folder.candidates() or ()}
    assert candidates[finalist].earlier_finalists == (() if finalist == first else (first,))
    agree(NAME, 6)
    _check_tracked(folder, clone.trial_id)
    finished(in_search_home, "resume", NAME)
    assert len(folder.journal().records) == 6


def _finalist(folder: StudyFolder) -> str:
    (finalist,) = (each.trial_id for each in folder.candidates() or () if each.test_metrics)
    return finalist


def _check_tracked(folder: StudyFolder, clone: str) -> None:
    client = connect(folder.info.tracking_uri)
    experiment = client.get_experiment_by_name("tiny-reviews")
    runs = client.search_runs([experiment.experiment_id], f"tags.`loraxs.study` = '{folder.name}'")
    tags = {run.data.tags.get("trial_id", ""): run.data.tags for run in runs}
    assert tags[clone]["loraxs.lineage"] == f"{NAME}/{folder.journal().records[clone].lineage}"
    (parent,) = (run for run in runs if "trial_id" not in run.data.tags)
    assert parent.info.status == "FINISHED"
