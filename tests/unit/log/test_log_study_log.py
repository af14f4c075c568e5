"""Lines are whole after a kill and a full disk; what they say of trials, and of the time that was spent."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.reports import report

from loraxs_search.home import disk_faults
from loraxs_search.log import study_log
from loraxs_search.log.clock import steady_time
from loraxs_search.log.events import (
    Commanded,
    DriverStarted,
    Phase,
    Reopened,
    TrainingEnded,
    TrialContinued,
    TrialEnded,
    TrialReported,
    TrialStarted,
    Warned,
)
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.search import Command, SearchPlan
from loraxs_search.records.trial import TrialState
from loraxs_search.search.tune.time_budget import TimeBudget

COMPLETE = TrialState.COMPLETE


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def reported(trial_id: str, step: int, score: float = 0.5, **event: Any) -> TrialReported:
    return TrialReported(report=report(trial_id, step, score), **event)


def test_what_was_written_is_read_back_and_saying_it_twice_changes_nothing(path):
    writer, reader = StudyLog(path), StudyLog(path)
    for trial_id in ("00000", "00001"):
        writer.append(TrialStarted(trial_id=trial_id, params={"rank": 8, "learning_rate": 1e-3}))
    told = [reported("00001", 40), reported("00000", 40), reported("00001", 80)]
    for one in told:
        writer.append(one)
    writer.append(Phase(study="mine", at=7.5, text="training again", done=1, total=2, unit="steps"))  # of no trial
    writer.append(TrialEnded(trial_id="00001", state=COMPLETE, reason="trained all 80 steps"))
    writer.append(TrainingEnded(notice="out of time"))
    writer.append(Reopened(number=1))
    assert (writer.notice, writer.is_reopened, writer.num_reopenings) == (None, True, 1)
    writer.append(TrainingEnded(notice="the time budget of 30 s is used up"))
    before = path.read_bytes()
    assert writer.append(TrialStarted(trial_id="00000", params={"rank": 16})) is None
    assert writer.append(reported("00000", 40, 0.9)) is None
    assert writer.append(TrialEnded(trial_id="00001", state=TrialState.PRUNED, reason="second")) is None
    assert path.read_bytes() == before
    assert not reader.records
    reader.refresh()
    for log in (writer, reader, StudyLog(path)):
        assert log.records == writer.records
        assert log.reports == [one.report for one in told]
        assert (log.notice, log.is_reopened) == ("the time budget of 30 s is used up", False)
    record = reader.records["00001"]
    assert ([each.step for each in record.reports], record.state) == ([40, 80], COMPLETE)
    assert record.started_at <= record.reported_at[0] <= record.reported_at[1]


def test_a_line_torn_by_a_kill_is_dropped_and_the_next_write_heals_the_file(path):
    StudyLog(path).append(TrialStarted(trial_id="00000", params={"rank": 8}))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "TrialReported", "report": {"trial_id": "' + b"0" * 5000)
    again = StudyLog(path)
    assert again.records["00000"].reports == ()
    again.append(reported("00000", 40))
    assert path.read_bytes().startswith(whole)
    assert len(path.read_bytes().splitlines()) == 2
    assert [r.step for r in StudyLog(path).records["00000"].reports] == [40]


@pytest.fixture
def clock(monkeypatch):
    """Set what time it is."""
    return lambda now: monkeypatch.setattr("loraxs_search.log.clock.steady_time", lambda: now)


def test_the_time_spent_is_that_of_drivers_at_work_and_not_the_time_between(path, clock):
    first = StudyLog(path)
    assert (first.spent_s, first.spent_by_now_s) == (0.0, 0.0)
    clock(1010.0)
    first.append(DriverStarted(since=1000.0))
    clock(1060.0)
    first.append(TrialStarted(trial_id="00000", params={"rank": 8}))
    assert first.spent_s == StudyLog(path).spent_s == 60.0
    clock(50_000.0)  # people may ask while nobody searches: that is no work
    for event in (Commanded(command=Command("c", "finish")), Reopened(number=1)):
        first.append(event)
    assert first.spent_s == 60.0
    clock(90_020.0)  # a day later, on a machine of another clock
    second = StudyLog(path)
    second.append(DriverStarted(since=90_000.0))
    assert second.spent_s == 60.0 + 20.0
    clock(90_030.0)
    second.append(reported("00000", 40))
    assert second.spent_s == StudyLog(path).spent_s == 60.0 + 30.0
    clock(500.0)  # its clock was set back
    second.append(reported("00000", 80))
    assert second.spent_s == 60.0 + 30.0


def test_a_clock_that_is_set_while_a_driver_works_moves_no_time_budget(path, monkeypatch):
    """As by a network's time on a machine that woke up without one, forwards or back."""
    began = steady_time()
    study: Any = SimpleNamespace(plan=SearchPlan(time_budget=60.0))
    budget, journal = TimeBudget(study, study, began), StudyLog(path)
    journal.append(DriverStarted(since=began))
    for step_s in (100_000.0, -100_000.0):
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda set_to=began + step_s: set_to)
            journal.append(TrainingEnded(notice=""))
            assert not budget.is_over
            assert (budget.left_s or 0) <= 60.0
            assert journal.spent_by_now_s < 60.0


def test_the_time_of_a_trial_leaves_out_what_no_driver_was_at_work(path, clock):
    killed = StudyLog(path)
    killed.append(DriverStarted(at=1010.0, since=1000.0))
    killed.append(TrialStarted(at=1020.0, trial_id="00000", params={"rank": 8}))
    killed.append(reported("00000", 40, at=1050.0))
    resumed = StudyLog(path)
    resumed.append(DriverStarted(at=5010.0, since=5000.0))
    clock(5040.0)
    resumed.append(TrialEnded(trial_id="00000", state=COMPLETE, reason="trained all 80 steps"))
    record = StudyLog(path).records["00000"]
    assert (record.started_at, record.ended_at, record.worked_s) == (1020.0, 5040.0, 30.0 + 40.0)
    assert StudyLog(path).spent_s == 50.0 + 40.0
    resumed.append(TrialContinued(at=5050.0, trial_id="00000"))  # the search has more time
    resumed.append(TrialEnded(at=5060.0, trial_id="00000", state=COMPLETE, reason="trained all 120 steps"))
    assert StudyLog(path).records["00000"].worked_s == 30.0 + 40.0 + 10.0


def test_threads_may_note_while_the_driver_records(path, monkeypatch):
    journal, at_once = StudyLog(path), list[int]()
    journal.append(TrialStarted(trial_id="00000", params={"rank": 8}))

    @contextlib.contextmanager
    def slowly(path: Path) -> Iterator[None]:
        at_once.append(1)
        assert len(at_once) == 1
        time.sleep(0)  # another thread's turn
        with disk_faults(path):
            yield
        at_once.pop()

    def note(number: int) -> None:
        for _ in range(50):
            journal.append(Warned(study="mine", at=1.0, text=f"from thread {number} " + "x" * 500))

    monkeypatch.setattr(study_log, "disk_faults", slowly)
    threads = [threading.Thread(target=note, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for step in range(1, 51):
        journal.append(reported("00000", step))
    for thread in threads:
        thread.join()
    assert StudyLog(path).records == journal.records
    assert len(path.read_text().splitlines()) == 1 + 4 * 50 + 50
