"""A driver's log shows the search: what happens is in the file first, then shown, then followed."""

from __future__ import annotations

import logging

import pytest
from support.reports import report
from support.studies import study as new_study

from loraxs_search.errors import HomeError
from loraxs_search.log.events import (
    DataRead,
    DriverStarted,
    SearchStarted,
    ShownEvent,
    Steered,
    TrialEnded,
    TrialEvent,
    TrialReported,
    TrialStarted,
    Warned,
)
from loraxs_search.log.study_log import SearchView, StudyLog
from loraxs_search.records.task import AnswerFact, ConstantAnswer, DataReport
from loraxs_search.records.trial import TrialState
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.trial.snapshot import Snapshot

STARTED = SearchStarted(
    **{"study": "s", "at": 9.0, "task": "t", "metric": "accuracy", "direction": "maximize", "num_trials": 3},
    **{"max_steps": 8, "report_every": 4, "num_refits": 0, "device": "cpu", "dtype": "float32", "num_slots": 1},
)


class Watching(SearchView):
    def __init__(self) -> None:
        self.new, self.old = list[ShownEvent](), list[str]()

    def happened(self, event: ShownEvent) -> None:
        self.new.append(event)

    def known(self, event: ShownEvent) -> None:
        self.old.append(type(event).__name__)

    @property
    def shown(self) -> list[str]:
        return [type(event).__name__ for event in self.new]


@pytest.fixture
def folder(store_uri):
    return new_study("s", store_uri)


@pytest.fixture
def view():
    return Watching()


def driver_of(folder: StudyFolder, view: SearchView | None) -> tuple[StudyLog, list[TrialEvent]]:
    """Return the log as a driver opens it, and what it is followed by."""
    log, followed = StudyLog(folder.journal_path, "s", view), list[TrialEvent]()
    log.append(DriverStarted(since=0.0))
    log.follow = followed.append
    return log, followed


def test_what_happens_to_a_trial_reaches_file_view_and_follower(folder, view, monkeypatch):
    log, followed = driver_of(folder, view)
    log.say(STARTED)
    log.append(TrialStarted(trial_id="00000", params={}))
    for _ in range(2):  # what is said twice counts once
        log.append(TrialReported(report=report("00000", 4, 0.5)))
        log.append(TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason="trained"))
    seen = ["SearchStarted", "TrialStarted", "TrialReported", "TrialEnded"]
    assert view.shown == seen
    assert list(folder.journal().history())[1:] == view.new
    assert followed == view.new[1:]

    def full(*_: object, **__: object) -> None:
        raise HomeError("No space left to write it.")

    monkeypatch.setattr("loraxs_search.log.study_log.disk_faults", full)
    with pytest.raises(HomeError):
        log.append(TrialStarted(trial_id="00001", params={}))
    assert (list(log.records), len(followed), view.shown) == (["00000"], 3, seen), "it has not happened"
    log.say(Warned(text="look"))  # what is only shown does not end the search
    assert view.shown == [*seen, "Warned"]


def test_a_report_that_only_the_snapshot_holds_is_taken_up(folder, view):
    log, _ = driver_of(folder, None)
    log.append(TrialStarted(trial_id="00000", params={}))
    log.append(TrialReported(report=report("00000", 4, 0.6)))
    reports = (report("00000", 4, 0.6), report("00000", 8, 0.7))
    folder.snapshots.write("00000", Snapshot("00000", 8, {}, {}, reports, 1.0, 10).to_bytes())
    again, followed = driver_of(folder, view)
    folder.snapshots.recover(again)
    assert folder.journal().records["00000"].reports == reports
    assert [event.report for event in followed if isinstance(event, TrialReported)] == [reports[1]]
    for _ in range(2):
        again.say(STARTED)
        assert view.old == ["TrialStarted", "TrialReported", "TrialReported"], "once"
    assert view.shown == ["SearchStarted"] * 2


def test_a_running_trial_whose_state_is_damaged_begins_again_and_that_is_said(folder, caplog):
    log, _ = driver_of(folder, None)
    for trial in ("00000", "00001"):
        log.append(TrialStarted(trial_id=trial, params={}))
        folder.snapshots.write(trial, Snapshot(trial, 4, {}, {}, (report(trial, 4, 0.6),), 1.0, 10).to_bytes())
    (folder.path / "snapshots" / "00000.safetensors").write_bytes(b"damaged")
    folder.snapshots.recover(log)
    assert folder.snapshots.read("00000") is None
    assert [len(record.reports) for record in folder.journal().records.values()] == [0, 1]
    assert "trial 00000 begins again" in caplog.text


def test_what_is_said_before_and_after_a_drivers_work_is_shown_and_not_written(folder, view):
    log = StudyLog(folder.journal_path, "s", view)
    log.phase("loading")
    log.append(DriverStarted(since=0.0))
    data = DataReport(
        {"train": 8, "validation": 2, "test": 2},
        tokens={"train": {"median": 3, "longest": 9}},
        answers=(AnswerFact("b", {"train": 5}), AnswerFact("a", {"train": 0.5})),
        constant=ConstantAnswer("b", {"test": {"accuracy": 0.5}}),
        standard_errors={"test": {"accuracy": {"error": 0.1, "reach": 0.5}}},
    )
    log.say(DataRead(metric="accuracy", num_rows=data.num_rows, report=data))
    log.phase(done=1, total=2, unit="steps")
    log.close()
    log.phase("writing")
    assert list(folder.journal().history())[1:] == view.new[1:3]
    assert view.shown == ["Phase", "DataRead", "Phase", "Phase"]


# ---- what fails in front of people stops no search -------------------------------------------------------------------
class ClosedView(SearchView):
    """A view whose reader went away."""

    shown = 0

    def happened(self, event: ShownEvent) -> None:
        self.shown += 1
        raise BrokenPipeError("gone")


def test_a_view_that_fails_is_left_out_from_then_on(folder, caplog):
    view = ClosedView()
    log = StudyLog(folder.journal_path, "s", view)
    with log.saying_warnings():
        log.phase("loading")
        log.say(Steered(text="stop 00001: it stops", finishing=""))
    assert view.shown == 1
    assert caplog.text.count("the view of the search failed, and shows no more: BrokenPipeError: gone") == 1


def test_whoever_warns_goes_on_where_the_warning_cannot_be_passed_on(folder, monkeypatch, capsys):
    log = folder.journal()

    def failing(_: Warned) -> None:
        raise ValueError("no")

    monkeypatch.setattr(log, "say", failing)
    with log.saying_warnings():
        logging.getLogger("loraxs_search.tracking").warning("MLflow is away")
    assert "ValueError: no" in capsys.readouterr().err
