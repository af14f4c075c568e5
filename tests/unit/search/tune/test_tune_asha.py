from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import FIFOScheduler

from loraxs_search.records import (
    AdapterSize,
    DataSource,
    SearchPlan,
    Task,
    TrialReport,
    to_json,
)
from loraxs_search.search.tune.schedulers.asha import StudyASHA, make_scheduler, stopped

TASK = Task("t", "sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",))
PLAN = SearchPlan(max_steps=16, report_every=4, reduction_factor=2)


def report(trial_id: str, step: int, score: float, peers: dict[str, tuple[int, float]] | None = None) -> TrialReport:
    return TrialReport(trial_id, step, {"accuracy": score}, 0.5, 1.0, 10, AdapterSize(1, 1, 1), peers or {})


def tunes(trial_id: str) -> SimpleNamespace:
    """A trial as Tune has it, under an id of its own."""
    return SimpleNamespace(trial_id=f"{trial_id}-in-tune", config={"spec": json.dumps({"trial_id": trial_id})})


def decide(scheduler: StudyASHA, trial_id: str, step: int, score: float) -> str:
    trial = tunes(trial_id)
    scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"step": step, "objective": score})


def decide_together(scheduler: StudyASHA, scores: dict[str, float], step: int) -> dict[str, str]:
    """Have trials report that were scored in one evaluation, one after the other."""
    decisions = {}
    for trial_id, told in together(scores, step).items():
        result = {"step": step, "objective": scores[trial_id], "report": to_json(told)}
        scheduler.on_trial_add(None, tunes(trial_id))
        decisions[trial_id] = scheduler.on_trial_result(None, tunes(trial_id), result)
    return decisions


def together(scores: dict[str, float], step: int) -> dict[str, TrialReport]:
    peers = {trial_id: (step, score) for trial_id, score in scores.items()}
    return {
        trial_id: report(trial_id, step, score, {name: peer for name, peer in peers.items() if name != trial_id})
        for trial_id, score in scores.items()
    }


def test_trials_that_were_scored_together_are_held_against_each_other_whichever_reports_first() -> None:
    scores = {"00000": 0.5, "00001": 0.8, "00002": 0.6, "00003": 0.9}
    for order in (list(scores), list(reversed(scores))):
        scheduler = make_scheduler(PLAN, TASK, [])
        assert isinstance(scheduler, StudyASHA)
        decisions = decide_together(scheduler, {trial_id: scores[trial_id] for trial_id in order}, 4)
        assert {name for name, decision in decisions.items() if decision == "STOP"} == {"00000", "00002"}
        assert scheduler.stopped.keys() == {"00000", "00002"}
        replayed = make_scheduler(PLAN, TASK, [together(scores, 4)[trial_id] for trial_id in order])
        assert stopped(replayed) == scheduler.stopped


def test_a_peer_whose_own_report_never_came_counts_after_a_restart_too() -> None:
    first = together({"00000": 0.5, "00001": 0.8}, 4)["00000"]  # the driver died before the other was journaled
    replayed = make_scheduler(PLAN, TASK, [first])
    assert isinstance(replayed, StudyASHA)
    assert stopped(replayed).keys() == {"00000"}
    assert decide(replayed, "00001", 4, 0.8) == "CONTINUE"
    assert decide(replayed, "00002", 4, 0.6) == "STOP"


def test_a_weak_trial_is_stopped_with_a_reason_that_names_step_and_score() -> None:
    scheduler = make_scheduler(PLAN, TASK, [])
    assert isinstance(scheduler, StudyASHA)
    assert decide(scheduler, "a", 4, 0.8) == "CONTINUE"
    assert decide(scheduler, "b", 4, 0.6) == "STOP"
    assert "step 4" in scheduler.stopped["b"]
    assert "0.6" in scheduler.stopped["b"]


def test_rungs_reached_before_a_restart_count_as_if_there_had_been_none() -> None:
    live = make_scheduler(PLAN, TASK, [])
    before = [report("00000", 4, 0.8), report("00001", 4, 0.7), report("00000", 8, 0.9)]
    replayed = make_scheduler(PLAN, TASK, before)
    assert isinstance(live, StudyASHA)
    assert isinstance(replayed, StudyASHA)
    decide(live, "00000", 4, 0.8)
    decide(live, "00001", 4, 0.7)
    for score, expected in [(0.74, "STOP"), (0.9, "CONTINUE")]:
        assert decide(live, f"n{score}", 4, score) == expected
        assert decide(replayed, f"n{score}", 4, score) == expected


def test_a_trial_that_its_last_report_had_stopped_is_known_again_after_a_restart() -> None:
    """A driver that died between the report and the end once had the trial go on."""
    reports = [report("00000", 4, 0.8), report("00001", 4, 0.6), report("00002", 4, 0.9), report("00000", 16, 0.1)]
    found = stopped(make_scheduler(PLAN, TASK, reports))
    assert list(found) == ["00001"]  # not the one that trained all its steps
    live = make_scheduler(PLAN, TASK, [])
    assert isinstance(live, StudyASHA)
    for told in reports[:2]:
        decide(live, told.trial_id, told.step, told.metrics["accuracy"])
    assert found == live.stopped


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.floats(0, 1)), max_size=30), st.sets(st.integers(0, 30)))
def test_restarts_change_no_decision(told: list[tuple[int, float]], restarts: set[int]) -> None:
    """Whichever trials report what, and wherever the driver dies between two reports."""
    undisturbed, resumed = make_scheduler(PLAN, TASK, []), make_scheduler(PLAN, TASK, [])
    steps: dict[str, int] = {}
    before: list[TrialReport] = []
    for place, (number, score) in enumerate(told):
        trial_id = f"{number:05d}"
        if steps.get(trial_id, 0) >= 16 or trial_id in stopped(undisturbed):
            continue
        if place in restarts:
            resumed = make_scheduler(PLAN, TASK, before)
            assert stopped(resumed) == stopped(undisturbed)
        steps[trial_id] = steps.get(trial_id, 0) + 4
        before.append(report(trial_id, steps[trial_id], score))
        for scheduler in (undisturbed, resumed):
            assert isinstance(scheduler, StudyASHA)
        assert decide(resumed, trial_id, steps[trial_id], score) == decide(
            undisturbed, trial_id, steps[trial_id], score
        )


def test_a_trial_that_an_earlier_version_let_go_on_is_not_ended_for_what_it_once_was() -> None:
    reports = [report("00000", 4, 0.8), report("00001", 4, 0.6), report("00001", 8, 0.9)]
    assert stopped(make_scheduler(PLAN, TASK, reports)) == {}


def test_decisions_are_taken_again_in_the_order_in_which_reports_came() -> None:
    """The first at a rung goes on, whichever started first."""
    first, second = report("00000", 4, 0.6), report("00001", 4, 0.8)
    assert stopped(make_scheduler(PLAN, TASK, [first, second])) == {}
    assert list(stopped(make_scheduler(PLAN, TASK, [second, first]))) == ["00000"]


def test_minimising_keeps_the_small() -> None:
    task = Task("t", "regression", DataSource(), "text", "label", "mse", "minimize", ("mse",))
    scheduler = make_scheduler(PLAN, task, [])
    assert isinstance(scheduler, StudyASHA)
    assert decide(scheduler, "a", 4, 0.2) == "CONTINUE"
    assert decide(scheduler, "b", 4, 0.9) == "STOP"


def test_a_failed_trial_leaves_the_rungs_alone() -> None:
    scheduler = make_scheduler(PLAN, TASK, [])
    assert isinstance(scheduler, StudyASHA)
    scheduler.on_trial_add(None, tunes("x"))
    scheduler.on_trial_complete(None, tunes("x"), {"step": 0, "failed": "diverged"})
    assert decide(scheduler, "a", 4, 0.1) == "CONTINUE"


@pytest.mark.parametrize("name", ["none"])
def test_none_stops_nobody(name: str) -> None:
    scheduler = make_scheduler(SearchPlan(scheduler=name), TASK, [report("00000", 4, 0.1)])
    assert isinstance(scheduler, FIFOScheduler)
    assert stopped(scheduler) == {}
