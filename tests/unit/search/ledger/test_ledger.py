"""The ledger keeps Optuna in step with the journal, whatever a killed driver left behind."""

from __future__ import annotations

import pytest
from support.studies import study as new_study

from loraxs_search.records import (
    AdapterSize,
    Direction,
    Hyperparameters,
    KeepRule,
    TrialReport,
    TrialState,
)
from loraxs_search.search.ledger.ledger import Ledger
from loraxs_search.search.ledger.optuna_storage import open_optuna_study
from loraxs_search.search.ledger.optuna_values import has_report, last_report
from loraxs_search.search.ledger.view import SilentView
from loraxs_search.tracking import Tracker
from loraxs_search.trial import Snapshot

HYPER = Hyperparameters(4, ("a",), 1e-3, 1e-3)


def report(trial_id: str, step: int, score: float) -> TrialReport:
    return TrialReport(trial_id, step, {"accuracy": score}, 0.5, 1.0, 10, AdapterSize(1, 1, 1))


class Desk:
    """A study folder with all that a ledger writes to."""

    def __init__(self, uri: str, *directions: Direction) -> None:
        self.folder = new_study("s", uri)
        self.study = open_optuna_study(self.folder.optuna_path, "s", *directions)
        self.tracker = Tracker("s", self.folder.path, uri, "t")

    def ledger(self) -> Ledger:
        return Ledger(self.folder.journal(), self.study, self.tracker, SilentView(), KeepRule("accuracy", "maximize"))

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.study.get_trials()]


@pytest.fixture
def desk(store_uri: str) -> Desk:
    return Desk(store_uri, "maximize")


def ask(desk: Desk) -> None:
    trial = desk.study.ask()
    trial.suggest_float("lr", 0, 1)


def test_the_ends_reach_optuna_with_value_and_reason(desk: Desk) -> None:
    ledger = desk.ledger()
    for number, state in enumerate((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)):
        ask(desk)
        ledger.started(f"{number:05d}", {}, HYPER)
        ledger.reported(report(f"{number:05d}", 4, 0.5 + number / 10))
        ledger.ended(f"{number:05d}", state, f"because {number}")
    trials = desk.study.get_trials()
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert [t.user_attrs["reason"] for t in trials] == ["because 0", "because 1", "because 2"]
    assert trials[0].value == 0.5
    assert [t.intermediate_values for t in trials] == [{4: 0.5}, {4: 0.6}, {4: 0.7}]


def test_optuna_behind_the_journal_is_brought_up(desk: Desk) -> None:
    ask(desk)
    journal = desk.folder.journal()
    journal.trial_started("00000", {})
    journal.trial_reported(report("00000", 4, 0.7))
    journal.trial_ended("00000", TrialState.COMPLETE, "trained")
    assert desk.states() == ["RUNNING"]
    desk.ledger().reconcile(desk.folder)
    desk.ledger().reconcile(desk.folder)
    assert desk.states() == ["COMPLETE"]
    assert desk.study.get_trials()[0].intermediate_values == {4: 0.7}


def test_a_report_that_only_the_snapshot_holds_is_taken_up(desk: Desk) -> None:
    ask(desk)
    desk.folder.journal().trial_started("00000", {})
    reports = (report("00000", 4, 0.6), report("00000", 8, 0.7))
    desk.folder.write_snapshot("00000", Snapshot("00000", 8, {}, {}, reports, 1.0, 10).to_bytes())
    ledger = desk.ledger()
    ledger.reconcile(desk.folder)
    assert ledger.records["00000"].reports == reports
    assert desk.study.get_trials()[0].intermediate_values == {4: 0.6, 8: 0.7}
    assert desk.states() == ["RUNNING"]


# ---- two objectives --------------------------------------------------------------------------------------------------
@pytest.fixture
def two(store_uri: str) -> Desk:
    return Desk(store_uri, "maximize", "minimize")


def test_of_two_objectives_reports_are_attributes_and_only_complete_trials_have_values(two: Desk) -> None:
    ledger = two.ledger()
    for number, state in enumerate((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)):
        ask(two)
        ledger.started(f"{number:05d}", {}, HYPER)
        ledger.reported(report(f"{number:05d}", 4, 0.5 + number / 10))
        ledger.reported(report(f"{number:05d}", 8, 0.6 + number / 10))
        ledger.ended(f"{number:05d}", state, f"because {number}")
    trials = open_optuna_study(two.folder.optuna_path, "s", "maximize", "minimize").get_trials()
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert [t.values for t in trials] == [[0.6, 1.0], None, None]
    assert [last_report(t) for t in trials] == [(8, (0.6, 1)), (8, (0.7, 1)), (8, (0.8, 1))]
    assert [has_report(trials[0], step) for step in (4, 6, 8)] == [True, False, True]
    assert [t.user_attrs["reason"] for t in trials] == ["because 0", "because 1", "because 2"]


def test_of_two_objectives_too_optuna_is_brought_up_and_nothing_is_recorded_twice(two: Desk) -> None:
    for number in range(3):
        ask(two)
        two.folder.journal().trial_started(f"{number:05d}", {})
    journal = two.folder.journal()
    for number, state in ((0, TrialState.COMPLETE), (1, TrialState.PRUNED)):
        journal.trial_reported(report(f"{number:05d}", 4, 0.7))
        journal.trial_ended(f"{number:05d}", state, "ended")
    journal.trial_reported(report("00002", 4, 0.8))
    assert two.states() == ["RUNNING"] * 3
    two.ledger().reconcile(two.folder)
    size = two.folder.optuna_path.stat().st_size
    two.ledger().reconcile(two.folder)
    assert two.folder.optuna_path.stat().st_size == size
    assert two.states() == ["COMPLETE", "PRUNED", "RUNNING"]
    trials = two.study.get_trials()
    assert [t.values for t in trials] == [[0.7, 1.0], None, None]
    assert [last_report(t) for t in trials] == [(4, (0.7, 1)), (4, (0.7, 1)), (4, (0.8, 1))]
