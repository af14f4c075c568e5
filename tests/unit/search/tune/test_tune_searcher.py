"""A searcher that cannot record says so and touches nothing more: Tune would take its exception for the trial's.

When failures end a search: nearly all of the latest trials fail for one reason, and not five of any number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ray.tune.search import Searcher
from support.asked_driver import PLAN, drive, the_space
from support.reports import measured
from support.studies import TASK, study

from loraxs_search.errors import HomeError, LoraxsError, UsageError
from loraxs_search.log.events import TrialEnded
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.trial import TrialReport, TrialState
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.search.tune.advancer import CANCELLED, FAILED, FATAL, REPORT, STEP
from loraxs_search.search.tune.loop import StudySearcher, common_failure
from loraxs_search.search.tune.proposer import Proposer

_NUMBERS = itertools.count()
pytestmark = pytest.mark.usefixtures("plain_specs")


@pytest.fixture
def make_searcher(fresh_home):
    """Make the searcher of a study with these values of its plan."""

    def made(stop: Callable[[], bool] = bool, **changes: Any) -> StudySearcher:
        plan = replace(PLAN, **{"trials": 20, "max_steps": 160, "scheduler": "none", **changes})
        return drive(study(f"s{next(_NUMBERS)}", f"sqlite:///{fresh_home}/mlflow.db", search=plan), stop).searcher

    return made


@pytest.fixture
def searcher(make_searcher):
    return make_searcher()


@pytest.fixture
def started(searcher):
    """A searcher with two trials under way."""
    assert isinstance(searcher.suggest("x"), dict)
    assert isinstance(searcher.suggest("y"), dict)
    assert searcher.suggest("z") is None, "there is room for two"
    return searcher


def _result(step: int, trial_id: str = "00000") -> dict[str, Any]:
    return {STEP: step, REPORT: to_json(measured(trial_id, step, {"accuracy": 0.5}))}


def states(searcher: StudySearcher) -> list[TrialState]:
    return [record.state for record in searcher._log.records.values()]


def test_a_disk_that_a_trial_met_ends_the_search_and_no_trial(started, make_searcher):
    started.on_trial_complete("x", {STEP: 0, FATAL: ["On node 10.0.0.2: No space left.", "free some space"]})
    assert isinstance(started.fatal_error, LoraxsError)
    assert started.fatal_error.hint == "free some space"
    started.on_trial_complete("y", {STEP: 40, FAILED: "something"})
    assert states(started) == [TrialState.RUNNING] * 2, "what comes after is not recorded: it is done again"
    assert started.suggest("z") == Searcher.FINISHED, "Tune asks no more"
    assert make_searcher(lambda: True).suggest("z") == Searcher.FINISHED, "nor of a search that is stopped"


def test_what_a_loop_has_left_without_an_end_is_proposed_by_the_next(started):
    """As at the end of a time budget that a user extends later."""
    started._log.append(TrialEnded(trial_id="00000", state=TrialState.PRUNED, reason="the time budget is used up"))
    started.begin_loop()
    assert isinstance(started.suggest("z"), dict)
    assert started.trial_ids == {"z": "00001"}


def test_what_the_log_cannot_write_is_left_to_the_driver(started, monkeypatch):
    def full(*_: object) -> None:
        raise HomeError("No space left to write it.", hint="free some space")

    with monkeypatch.context() as patch:
        patch.setattr(StudyLog, "append", full)
        started.on_trial_result("x", _result(40))
    assert "No space left" in str(started.fatal_error)
    first = started.fatal_error
    started.on_trial_complete("y", {STEP: 0, FATAL: ["other", ""]})
    assert started.fatal_error is first, "the first cause is the one to tell"


def test_params_that_no_trial_can_have_cost_that_trial_alone(searcher, monkeypatch):
    """It had ended the search, and `resume` met the same trial again."""
    made = searcher._actors.spec

    def refusing(trial_id: str, *given: Any) -> Any:
        if trial_id == "00000":
            raise UsageError("`rank` must be even with `init: orthogonal`, but got rank=3.")
        return made(trial_id, *given)

    monkeypatch.setattr(searcher._actors, "spec", refusing)
    assert searcher.suggest("x") is None
    assert isinstance(searcher.suggest("x"), dict)
    first, second = searcher._log.records.values()
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.RUNNING)
    assert "must be even" in first.reason
    assert searcher.fatal_error is None


def test_a_trial_that_fails_is_recorded_with_its_reason(started):
    started.on_trial_complete("x", {STEP: 0, FAILED: "it diverged"})
    started.on_trial_complete("y", None, error=True)
    assert states(started) == [TrialState.FAIL] * 2
    reasons = [record.reason for record in started._log.records.values()]
    assert (reasons[0], "lost more than 3" in reasons[1]) == ("it diverged", True)
    assert started.fatal_error is None


def test_every_seed_that_a_space_may_have_proposes_and_a_small_one_what_it_always_has(make_searcher):
    """TPE takes 32 bits."""
    assert isinstance(make_searcher(seed=2**32 - 1).suggest("x"), dict)
    searcher = make_searcher(seed=3)
    searcher.suggest("x")
    params, _ = Proposer(StudyTrials(TASK, PLAN), the_space()).propose(3_000_009)
    assert searcher._log.records["00000"].params == params


def test_trials_that_nearly_all_fail_for_one_reason_end_the_search(searcher):
    for number, name in enumerate("abcde"):
        assert isinstance(searcher.suggest(name), dict)
        if number % 2:
            searcher.on_trial_result(name, _result(40, f"{number:05d}"))
        searcher.on_trial_complete(name, {STEP: 0, FAILED: WHY})
    assert searcher.suggest("f") == Searcher.FINISHED
    assert searcher.failing == f"5 of the latest trials failed for the same reason: {WHY}"


# ---- steered ---------------------------------------------------------------------------------------------------------
def report(searcher: StudySearcher, tune_id: str, step: int, trial_id: str) -> bool:
    """Have a trial report as Tune does; return whether it goes on."""
    result = _result(step, trial_id)
    searcher.on_trial_result(tune_id, result)
    if step < 160 and not searcher.stops(from_json(TrialReport, result[REPORT])):
        return True
    searcher.on_trial_complete(tune_id, result)
    return False


def test_a_stopped_trial_ends_at_its_next_report(started):
    started._state.stopping["00000"] = "stopped by a person"
    started.apply_commands()
    assert states(started) == [TrialState.RUNNING] * 2, "its report is still to come"
    assert not report(started, "x", 40, "00000")
    assert report(started, "y", 40, "00001")
    record = started._log.records["00000"]
    assert (record.state, record.reason) == (TrialState.PRUNED, "stopped by a person at step 40")
    assert len(record.reports) == 1

    started._state.stopping["00001"] = "stopped by a person"
    started._state.at_once.add("00001")
    assert started.to_cancel == ["00001"]
    started.on_trial_complete("y", {STEP: 40, CANCELLED: True})
    assert started._log.records["00001"].reason == "stopped by a person at step 40", "its host gave it up"
    assert started.to_cancel == []


def test_finishing_lets_the_running_trials_train(started):
    started._state.stopping["00000"] = "stopped by a person"
    started._state.finishing = "finished by a person"
    report(started, "x", 160, "00000")
    assert started.suggest("z") is None, "more may be asked for while a trial trains"
    report(started, "y", 160, "00001")
    assert started.suggest("z") == Searcher.FINISHED
    assert (started.is_short, started.notice) == (False, "finished by a person")
    assert states(started)[0] is TrialState.COMPLETE, "a stop that comes with the last report is no stop"


WHY = "`loss` must be finite, but got nan."


def test_the_latest_trials_decide_whether_all_fail():
    assert common_failure([WHY] * 4, 1) is None
    assert common_failure([*[""] * 50, *[WHY] * 8], 1) is None
    assert common_failure([*[""] * 50, *[WHY] * 9], 1) == (9, WHY), "what went well long ago does not count"
    assert common_failure(["one", "another"] * 10, 1) is None
    assert common_failure([WHY] * 6, 20) is None, "of twenty that start together, those that fail do so first"
