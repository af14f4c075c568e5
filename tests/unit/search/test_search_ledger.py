"""The ledger says each event once: to the log first, then to whoever follows it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from support.studies import study as new_study
from support.toys import HYPERPARAMETERS

from loraxs_search.errors import HomeError
from loraxs_search.log.events import (
    DataRead,
    SearchStarted,
    ShownEvent,
    Steered,
    TrialEnded,
    TrialReported,
    TrialStarted,
    Warned,
)
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import AnswerFact, ConstantAnswer, DataReport, StandardError, TokenCounts
from loraxs_search.records.trial import AdapterSize, Proposal, TrialReport, TrialState
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.search.ledger import Ledger, SilentView
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.trial.snapshot import Snapshot

STARTED = SearchStarted(
    **{"study": "s", "at": 9.0, "task": "t", "metric": "accuracy", "direction": "maximize", "num_trials": 3},
    **{"max_steps": 8, "report_every": 4, "num_refits": 0, "device": "cpu", "dtype": "float32", "num_slots": 1},
)


class Watching(SilentView):
    def __init__(self) -> None:
        self.new, self.old = list[str](), list[str]()

    def happened(self, event: ShownEvent) -> None:
        self.new.append(event.event)

    def known(self, event: ShownEvent) -> None:
        self.old.append(event.event)


def report(trial_id: str, step: int, score: float) -> TrialReport:
    return TrialReport(trial_id, step, {"accuracy": score}, 0.5, 1.0, 10, AdapterSize(1, 1, 1))


@pytest.fixture
def folder(store_uri: str) -> StudyFolder:
    return new_study("s", store_uri)


def ledger_on(folder: StudyFolder, view: Any = None) -> tuple[Ledger, StudyTrials]:
    """Return a ledger as a driver opens it, and what the sampler has."""
    journal = folder.journal()
    trials = StudyTrials(folder.info.task, SearchPlan())
    ledger = Ledger("s", view or SilentView())
    ledger.open(journal, trials)
    return ledger, trials


def start(ledger: Ledger, trial_id: str) -> None:
    params = {"rank": 8, "scale": 1.0, "target_modules": "ffn", "learning_rate": 0.01, "head_learning_rate": 0.01}
    ledger.trial(
        TrialStarted(trial_id=trial_id, params=params, hyperparameters=HYPERPARAMETERS, proposal=Proposal({}, {}))
    )


def test_what_happens_to_a_trial_reaches_log_sampler_and_view(folder: StudyFolder) -> None:
    view = Watching()
    ledger, trials = ledger_on(folder, view)
    ledger.say(STARTED)
    start(ledger, "00000")
    for _ in range(2):  # what is said twice counts once
        ledger.trial(TrialReported(report=report("00000", 4, 0.5)))
        ledger.trial(TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason="trained"))
    assert [event.event for event in folder.journal().history()] == ["search_started", "started", "reported", "ended"]
    assert view.new == ["search_started", "started", "reported", "ended"]
    assert [trial.value for trial in trials.trials] == [0.5]


def test_what_the_log_cannot_take_has_not_happened(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    view = Watching()
    ledger, trials = ledger_on(folder, view)
    ledger.say(STARTED)

    def full(*_: object) -> None:
        raise HomeError("No space left to write it.")

    monkeypatch.setattr(StudyLog, "append", full)
    with pytest.raises(HomeError):
        start(ledger, "00000")
    assert (ledger.records, trials.trials, trials.next_number, view.new) == ({}, [], 0, ["search_started"])
    ledger.say(Warned(text="look"))  # of what only watchers are told the search does not end
    assert view.new == ["search_started", "warning"]


def test_a_report_that_only_the_snapshot_holds_is_taken_up(folder: StudyFolder) -> None:
    ledger, _ = ledger_on(folder)
    start(ledger, "00000")
    ledger.trial(TrialReported(report=report("00000", 4, 0.6)))
    reports = (report("00000", 4, 0.6), report("00000", 8, 0.7))
    folder.snapshots.write("00000", Snapshot("00000", 8, {}, {}, reports, 1.0, 10).to_bytes())
    view = Watching()
    again, trials = ledger_on(folder, view)
    again.recover(folder)
    assert folder.journal().records["00000"].reports == reports
    assert trials.trials[0].intermediate_values == {4: 0.6, 8: 0.7}
    again.say(STARTED)
    assert (view.new, view.old) == (["search_started"], ["started", "reported", "reported"])
    again.say(STARTED)
    assert len(view.old) == 3, "once"


def test_a_running_trial_whose_state_is_damaged_begins_again_and_that_is_said(
    folder: StudyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, _ = ledger_on(folder)
    for trial in ("00000", "00001"):
        start(ledger, trial)
        folder.snapshots.write(trial, Snapshot(trial, 4, {}, {}, (report(trial, 4, 0.6),), 1.0, 10).to_bytes())
    (folder.path / "snapshots" / "00000.safetensors").write_bytes(b"damaged")
    again, _ = ledger_on(folder)
    again.recover(folder)
    assert folder.snapshots.read("00000") is None
    assert [len(record.reports) for record in folder.journal().records.values()] == [0, 1]
    assert "trial 00000 begins again" in caplog.text


# ---- what fails in front of people stops no search -------------------------------------------------------------------
class ClosedView(SilentView):
    """A view whose reader went away."""

    shown = 0

    def happened(self, event: ShownEvent) -> None:
        self.shown += 1
        raise BrokenPipeError("gone")


def test_a_view_that_fails_is_left_out_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    view = ClosedView()
    ledger = Ledger("s", view)
    with ledger.hearing_warnings():
        ledger.phase("loading")
        ledger.say(Steered(text="stop 00001: it stops", finishing=""))
    assert view.shown == 1
    assert caplog.text.count("the view of the search failed, and shows no more: BrokenPipeError: gone") == 1


def test_whoever_warns_goes_on_where_the_warning_cannot_be_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger("s", SilentView())

    def failing(_: Warned) -> None:
        raise ValueError("no")

    monkeypatch.setattr(ledger, "say", failing)
    with ledger.hearing_warnings():
        logging.getLogger("loraxs_search.tracking").warning("MLflow is away")
    assert "ValueError: no" in capsys.readouterr().err


def test_what_rows_are_like_is_kept_for_who_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path))
    folder, heard = new_study("s"), list[ShownEvent]()

    class Hearing(SilentView):
        def happened(self, event: ShownEvent) -> None:
            heard.append(event)

    ledger, _ = ledger_on(folder, Hearing())
    data = DataReport(
        {"train": 8, "validation": 2, "test": 2},
        tokens={"train": TokenCounts(3, 9)},
        answers=(AnswerFact("b", {"train": 5}), AnswerFact("a", {"train": 0.5})),
        constant=ConstantAnswer("b", {"test": {"accuracy": 0.5}}),
        standard_errors={"test": {"accuracy": StandardError(0.1, 0.5)}},
    )
    ledger.say(DataRead(metric=folder.info.task.metric, num_rows=data.num_rows, report=data))
    (event,) = heard
    assert isinstance(event, DataRead)
    assert (event.metric, event.report) == (folder.info.task.metric, data)
    assert list(folder.journal().history()) == heard
