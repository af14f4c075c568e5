"""A study's log: each event is a line, whole after a kill and a full disk; what lines say of trials and of time spent.

What happens is in the file first, then shown, then followed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from support.studies import FACTS
from support.studies import study as new_study
from support.toys import report

from loraxs_search.errors import HomeError
from loraxs_search.home import disk_faults
from loraxs_search.log import events, study_log
from loraxs_search.log.clock import steady_time
from loraxs_search.log.study_log import SearchView, StudyLog, read_events
from loraxs_search.records.search import Baseline, Command, SearchPlan
from loraxs_search.records.task import AnswerFact, ConstantAnswer, DataReport
from loraxs_search.records.trial import AdapterSize, Proposal, TrialReport, TrialState
from loraxs_search.search.tune.time_budget import TimeBudget
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.trial.snapshot import Snapshot

COMPLETE = TrialState.COMPLETE


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def reported(trial_id: str, step: int, score: float = 0.5, **event: Any) -> events.TrialReported:
    return events.TrialReported(report=report(trial_id, step, score), **event)


def test_what_was_written_is_read_back_and_saying_it_twice_changes_nothing(path):
    writer, reader = StudyLog(path), StudyLog(path)
    for trial_id in ("00000", "00001"):
        writer.append(events.TrialStarted(trial_id=trial_id, params={"rank": 8, "learning_rate": 1e-3}))
    told = [reported("00001", 40), reported("00000", 40), reported("00001", 80)]
    for one in told:
        writer.append(one)
    writer.append(events.Phase(study="mine", at=7.5, text="again", done=1, total=2, unit="steps"))  # of no trial
    writer.append(events.TrialEnded(trial_id="00001", state=COMPLETE, reason="trained all 80 steps"))
    writer.append(events.TrainingEnded(notice="out of time"))
    writer.append(events.Reopened(number=1))
    assert (writer.notice, writer.is_reopened, writer.num_reopenings) == (None, True, 1)
    writer.append(events.TrainingEnded(notice="the time budget of 30 s is used up"))
    before = path.read_bytes()
    assert writer.append(events.TrialStarted(trial_id="00000", params={"rank": 16})) is None
    assert writer.append(reported("00000", 40, 0.9)) is None
    assert writer.append(events.TrialEnded(trial_id="00001", state=TrialState.PRUNED, reason="second")) is None
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


def test_the_journal_keeps_commands_in_the_order_they_were_taken(path):
    stop, typed = Command("c1", "stop", ("00001",), {"now": True}), Command("c2", "finish")
    journal = StudyLog(path)
    taken = [journal.append(events.Commanded(command=command)) for command in (stop, typed, stop)]
    assert [event is not None for event in taken] == [True, True, False]
    answer = events.Answered(command_id="c2", state="done", text="so", facts={"trials": "00001"})
    assert journal.append(answer)
    assert not journal.append(events.Answered(command_id="c2", state="refused", text="something else"))
    again = StudyLog(path)
    assert list(again.commands) == ["c1", "c2"]
    assert (again.commands, again.answers) == ({"c1": stop, "c2": typed}, {"c2": answer})
    assert path.read_text().count("\n") == 3


def test_a_line_torn_by_a_kill_is_dropped_and_the_next_write_heals_the_file(path):
    StudyLog(path).append(events.TrialStarted(trial_id="00000", params={"rank": 8}))
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
    first.append(events.DriverStarted(since=1000.0))
    clock(1060.0)
    first.append(events.TrialStarted(trial_id="00000", params={"rank": 8}))
    assert first.spent_s == StudyLog(path).spent_s == 60.0
    clock(50_000.0)  # people may ask while nobody searches: that is no work
    for event in (events.Commanded(command=Command("c", "finish")), events.Reopened(number=1)):
        first.append(event)
    assert first.spent_s == 60.0
    clock(90_020.0)  # a day later, on a machine of another clock
    second = StudyLog(path)
    second.append(events.DriverStarted(since=90_000.0))
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
    journal.append(events.DriverStarted(since=began))
    for step_s in (100_000.0, -100_000.0):
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda set_to=began + step_s: set_to)
            journal.append(events.TrainingEnded(notice=""))
            assert not budget.is_over
            assert (budget.left_s or 0) <= 60.0
            assert journal.spent_by_now_s < 60.0


def test_the_time_of_a_trial_leaves_out_what_no_driver_was_at_work(path, clock):
    killed = StudyLog(path)
    killed.append(events.DriverStarted(at=1010.0, since=1000.0))
    killed.append(events.TrialStarted(at=1020.0, trial_id="00000", params={"rank": 8}))
    killed.append(reported("00000", 40, at=1050.0))
    resumed = StudyLog(path)
    resumed.append(events.DriverStarted(at=5010.0, since=5000.0))
    clock(5040.0)
    resumed.append(events.TrialEnded(trial_id="00000", state=COMPLETE, reason="trained all 80 steps"))
    record = StudyLog(path).records["00000"]
    assert (record.started_at, record.ended_at, record.worked_s) == (1020.0, 5040.0, 30.0 + 40.0)
    assert StudyLog(path).spent_s == 50.0 + 40.0
    resumed.append(events.TrialContinued(at=5050.0, trial_id="00000"))  # the search has more time
    resumed.append(events.TrialEnded(at=5060.0, trial_id="00000", state=COMPLETE, reason="trained all 120 steps"))
    assert StudyLog(path).records["00000"].worked_s == 30.0 + 40.0 + 10.0


def test_threads_may_note_while_the_driver_records(path, monkeypatch):
    journal, at_once = StudyLog(path), list[int]()
    journal.append(events.TrialStarted(trial_id="00000", params={"rank": 8}))

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
            journal.append(events.Warned(study="mine", at=1.0, text=f"from thread {number} " + "x" * 500))

    monkeypatch.setattr(study_log, "disk_faults", slowly)
    with ThreadPoolExecutor(4) as threads:
        notes = threads.map(note, range(4))
        for step in range(1, 51):
            journal.append(reported("00000", step))
    assert len(list(notes)) == 4, "none has failed"
    assert StudyLog(path).records == journal.records
    assert len(path.read_text().splitlines()) == 1 + 4 * 50 + 50


REPORT = TrialReport(
    "00000", 40, {"accuracy": 0.5}, 0.7, 1.5, 100, AdapterSize(16, 4, 80), {"00001": (40, 0.4)}, host="a"
)
PROPOSAL = Proposal({"rank": 8, "bias": True}, {"rank": {"name": "x", "choices": [8, 4]}}, {"cma:0": "ab"})
EVENTS: list[events.LoggedEvent] = [
    events.DriverStarted(at=1.0, since=0.5),
    events.TrialStarted(at=2.0, trial_id="00000", params={"rank": 8, "bias": True, "head": "full", "rate": 0.1}),
    events.TrialStarted(at=2.0, trial_id="00001", params={}, command="c", lineage="00000", proposal=PROPOSAL),
    events.TrialReported(at=3.0, report=REPORT),
    events.TrialContinued(at=4.5, trial_id="00000"),
    events.TrialEnded(at=4.0, trial_id="00000", state=TrialState.PRUNED, reason="weak"),
    events.TrainingEnded(at=5.0, notice=""),
    events.Reopened(at=6.0, number=2),
    events.Commanded(at=7.0, command=Command("c", "stop", ("00000",), {"now": True}, {"rank": 4}, "ann", 6.5)),
    events.Answered(at=8.0, command_id="c", state="done", text="it stops", facts={"step": 3}),
    events.Phase(at=9.0, text="scoring", done=1, total=2, unit="rows"),
    events.Warned(at=9.0, text="look"),
    events.Steered(at=9.0, text="finish: no more", finishing="finished by a person"),
    events.RowsScored(at=9.0, what="candidate", name="00000.1", split="test", metrics={"accuracy": 0.5}),
    events.AdapterWritten(at=9.0, trial_id="00000.1", folder="a/00000.1", run_of="00000", scores={"test.f1": 0.5}),
    events.BaselinesMeasured(at=9.0, baselines=(Baseline("constant", {"accuracy": 0.5}, answer=1),)),
    events.ReportWritten(at=9.0, path="report.html"),
    events.SearchFinished(at=9.0, state="KILLED", summary={"wall_s": 1.5, "notice": "so"}),
]


def write(path: Path, *told: events.LoggedEvent) -> None:
    path.write_bytes(b"".join(event.to_line() for event in told))


def read(path: Path) -> list[events.LoggedEvent]:
    return [event for event, _ in read_events(path, None) if event is not None]


def test_every_event_is_read_back_from_its_line(path):
    """Parameters in their order, too: samplers go by it."""
    run = {"space_yaml": "task: t\n", "plan": SearchPlan(trials=3), "params": {"a": 1}, "tags": {"b": "c"}}
    told = [*EVENTS, events.DriverStarted(at=1.0, since=0.5, **run)]
    write(path, *told)
    assert len(path.read_bytes().splitlines()) == len(told)
    assert repr(read(path)) == repr(told)
    read_back_below = {events.DataRead, events.SearchStarted}
    assert {type(event) for event in EVENTS} >= set(get_args(events.LoggedEvent)) - read_back_below


def test_a_text_with_half_a_character_spoils_no_log(path):
    """Python names files so whose names are no UTF-8."""
    write(path, *(events.Warned(at=9.0, text=text) for text in ("caf\udce9.csv", "caf\u00e9 \U0001f600")))
    texts = [event.text for event in read(path) if isinstance(event, events.Warned)]
    assert texts == ["caf?.csv", "caf\u00e9 \U0001f600"]


def test_readers_go_on_from_their_offsets(path):
    write(path, *EVENTS[:2])
    (first, behind), (second, end) = read_events(path, "s")
    assert first is not None
    assert (first.study, end) == ("s", path.stat().st_size)
    assert list(read_events(path, "s", behind)) == [(second, end)]
    assert list(read_events(path, "s", end)) == []


# ---- other lines -----------------------------------------------------------------------------------------------------
def test_an_unknown_kind_is_passed_over_with_a_warning(path, caplog):
    path.write_text('{"event": "unheard_of", "at": 1.0}\n{"event": "Warned", "text": "so", "at": 1.0}\n')
    assert [type(event).__name__ for event in read(path)] == ["Warned"]
    assert next(read_events(path, None))[1] == len(path.read_text().partition("\n")[0]) + 1, "and not read again"
    assert "unheard_of" in caplog.text


# ---- what a driver shows of it ---------------------------------------------------------------------------------------
STARTED = replace(FACTS, study="s", at=9.0)


class Watching(SearchView):
    def __init__(self) -> None:
        self.new, self.old = list[events.ShownEvent](), list[str]()

    def happened(self, event: events.ShownEvent) -> None:
        self.new.append(event)

    def known(self, event: events.ShownEvent) -> None:
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


def driver_of(folder: StudyFolder, view: SearchView | None) -> tuple[StudyLog, list[events.TrialEvent]]:
    """Return the log as a driver opens it, and what it is followed by."""
    log, followed = StudyLog(folder.journal_path, "s", view), list[events.TrialEvent]()
    log.append(events.DriverStarted(since=0.0))
    log.follow = followed.append
    return log, followed


def test_what_happens_to_a_trial_reaches_file_view_and_follower(folder, view, monkeypatch):
    log, followed = driver_of(folder, view)
    log.say(STARTED)
    log.append(events.TrialStarted(trial_id="00000", params={}))
    for _ in range(2):  # what is said twice counts once
        log.append(events.TrialReported(report=report("00000", 4, 0.5)))
        log.append(events.TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason="trained"))
    seen = ["SearchStarted", "TrialStarted", "TrialReported", "TrialEnded"]
    assert view.shown == seen
    assert list(folder.journal().history())[1:] == view.new
    assert followed == view.new[1:]

    def full(*_: object, **__: object) -> None:
        raise HomeError("No space left to write it.")

    monkeypatch.setattr("loraxs_search.log.study_log.disk_faults", full)
    with pytest.raises(HomeError):
        log.append(events.TrialStarted(trial_id="00001", params={}))
    assert (list(log.records), len(followed), view.shown) == (["00000"], 3, seen), "it has not happened"
    log.say(events.Warned(text="look"))  # what is only shown does not end the search
    assert view.shown == [*seen, "Warned"]


def test_a_report_that_only_the_snapshot_holds_is_taken_up(folder, view):
    log, _ = driver_of(folder, None)
    log.append(events.TrialStarted(trial_id="00000", params={}))
    log.append(events.TrialReported(report=report("00000", 4, 0.6)))
    reports = (report("00000", 4, 0.6), report("00000", 8, 0.7))
    folder.snapshots.write("00000", Snapshot("00000", 8, {}, {}, reports, 1.0, 10).to_bytes())
    again, followed = driver_of(folder, view)
    folder.snapshots.recover(again)
    assert folder.journal().records["00000"].reports == reports
    assert [event.report for event in followed if isinstance(event, events.TrialReported)] == [reports[1]]
    for _ in range(2):
        again.say(STARTED)
        assert view.old == ["TrialStarted", "TrialReported", "TrialReported"], "once"
    assert view.shown == ["SearchStarted"] * 2


def test_a_running_trial_whose_state_is_damaged_begins_again_and_that_is_said(folder, caplog):
    log, _ = driver_of(folder, None)
    for trial in ("00000", "00001"):
        log.append(events.TrialStarted(trial_id=trial, params={}))
        folder.snapshots.write(trial, Snapshot(trial, 4, {}, {}, (report(trial, 4, 0.6),), 1.0, 10).to_bytes())
    (folder.path / "snapshots" / "00000.safetensors").write_bytes(b"damaged")
    folder.snapshots.recover(log)
    assert folder.snapshots.read("00000") is None
    assert [len(record.reports) for record in folder.journal().records.values()] == [0, 1]
    assert "trial 00000 begins again" in caplog.text


def test_what_is_said_before_and_after_a_drivers_work_is_shown_and_not_written(folder, view):
    log = StudyLog(folder.journal_path, "s", view)
    log.phase("loading")
    log.append(events.DriverStarted(since=0.0))
    data = DataReport(
        {"train": 8, "validation": 2, "test": 2},
        tokens={"train": {"median": 3, "longest": 9}},
        answers=(AnswerFact("b", {"train": 5}), AnswerFact("a", {"train": 0.5})),
        constant=ConstantAnswer("b", {"test": {"accuracy": 0.5}}),
        standard_errors={"test": {"accuracy": {"error": 0.1, "reach": 0.5}}},
    )
    log.say(events.DataRead(metric="accuracy", num_rows=data.num_rows, report=data))
    log.phase(done=1, total=2, unit="steps")
    log.close()
    log.phase("writing")
    assert list(folder.journal().history())[1:] == view.new[1:3]
    assert view.shown == ["Phase", "DataRead", "Phase", "Phase"]


# ---- what fails in front of people stops no search -------------------------------------------------------------------
def test_a_view_that_fails_is_left_out_from_then_on(folder, view, caplog, monkeypatch):
    def gone(event: events.ShownEvent) -> None:
        view.new.append(event)
        raise BrokenPipeError("gone")

    monkeypatch.setattr(view, "happened", gone)
    log = StudyLog(folder.journal_path, "s", view)
    with log.saying_warnings():
        log.phase("loading")
        log.say(events.Steered(text="stop 00001: it stops", finishing=""))
    assert view.shown == ["Phase"]
    assert caplog.text.count("the view of the search failed, and shows no more: BrokenPipeError: gone") == 1


def test_whoever_warns_goes_on_where_the_warning_cannot_be_passed_on(folder, monkeypatch, capsys):
    log = folder.journal()

    def failing(_: events.Warned) -> None:
        raise ValueError("no")

    monkeypatch.setattr(log, "say", failing)
    with log.saying_warnings():
        logging.getLogger("loraxs_search.tracking").warning("MLflow is away")
    assert "ValueError: no" in capsys.readouterr().err
