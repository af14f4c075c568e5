"""A real search, steered from another process, killed in between: each command counts once, and the rest goes on."""

from __future__ import annotations

import pytest
from support.shell import start, wait_for

import loraxs_search
from loraxs_search.errors import CommandError
from loraxs_search.records.search import AnswerState
from loraxs_search.records.trial import TrialState
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.snapshots import read_reports

pytestmark = [pytest.mark.long(part="faults"), pytest.mark.timeout(600)]
NAME = "steered"
# Two long trials at a time, so that there is time to speak of them.
PLAN = {"trials": 8, "concurrent": 2, "max_steps": 4000, "report_every": 10, "scheduler": "none"}
PLAN |= {"checkpoint": "best", "metric": "f1"}
OVERRIDES = [part for name, value in PLAN.items() for part in ("--set", f"search.{name}={value}")]


def states() -> dict[str, TrialState]:
    records = StudyFolder.open(NAME).journal().records if StudyFolder.exists(NAME) else {}
    return {name: record.state for name, record in records.items()}


def steps(trial_id: str) -> int:
    reports = StudyFolder.open(NAME).journal().records[trial_id].reports
    return reports[-1].step if reports else 0


def test_a_search_is_steered_and_killed_and_ends_as_it_was_told(in_search_home, tiny_space, agree, monkeypatch):
    monkeypatch.setattr("loraxs_search.steering.WAIT_S", 120.0)
    with start(in_search_home, "launch", str(tiny_space), "--name", NAME, *OVERRIDES) as driver:
        wait_for(driver, lambda: len(states()) == 2 and steps("00000") > 0 and steps("00001") > 0)
        assert loraxs_search.stop_trials(NAME, "00001", now=True).state is AnswerState.DONE
        wait_for(driver, lambda: states()["00001"] is TrialState.PRUNED)
        with pytest.raises(CommandError, match=r"00001 .*PRUNED"):
            loraxs_search.stop_trials(NAME, "00001")
        wait_for(driver, lambda: "00002" in states())
        driver.kill()
        driver.communicate()
    known = StudyFolder.open(NAME).journal().records
    assert loraxs_search.finish_study(NAME).state is AnswerState.QUEUED
    with start(in_search_home, "resume", NAME) as again:
        wait_for(again, StudyFolder.open(NAME).is_running)
        assert loraxs_search.stop_trials(NAME, "00000", "00002").state is AnswerState.DONE
        _, talk = again.communicate(timeout=300)
    assert again.returncode == 0, talk
    assert "notice: finished by a person" in talk
    agree(NAME, 3)
    records = StudyFolder.open(NAME).journal().records
    for name, record in known.items():
        assert records[name].params == record.params
        assert records[name].reports[: len(record.reports)] == record.reports, "a kill loses nothing"
    best = max(records["00000"].reports, key=lambda report: (report.metrics["f1"], -report.step))
    kept = StudyFolder.open(NAME).snapshots.read_kept("00000")
    assert read_reports(kept or b"")[-1].step == best.step, "whichever driver it was trained by"
    assert {record.state for record in records.values()} == {TrialState.PRUNED}
    assert records["00001"].reason.startswith("stopped by a person (")
