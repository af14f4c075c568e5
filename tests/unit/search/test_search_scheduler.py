from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import FIFOScheduler

from loraxs_search.records import (
    AdapterSize,
    DataSource,
    SearchPlan,
    Task,
    TrialRecord,
    TrialReport,
    TrialState,
)
from loraxs_search.search.scheduler import StudyASHA, make_scheduler

TASK = Task("t", "sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",))
PLAN = SearchPlan(max_steps=16, report_every=4, reduction_factor=2)


def record(trial_id: str, *scores: float) -> TrialRecord:
    size = AdapterSize(1, 1, 1)
    reports = tuple(
        TrialReport(trial_id, 4 * (i + 1), {"accuracy": score}, 0.5, 1.0, 10, size) for i, score in enumerate(scores)
    )
    return TrialRecord(trial_id, {}, TrialState.RUNNING, reports=reports)


def decide(scheduler: StudyASHA, trial_id: str, step: int, score: float) -> str:
    trial = SimpleNamespace(trial_id=trial_id)
    scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"step": step, "objective": score})


def test_a_weak_trial_is_stopped_with_a_reason_that_names_step_and_score() -> None:
    scheduler = make_scheduler(PLAN, TASK, [])
    assert isinstance(scheduler, StudyASHA)
    assert decide(scheduler, "a", 4, 0.8) == "CONTINUE"
    assert decide(scheduler, "b", 4, 0.6) == "STOP"
    assert "step 4" in scheduler.reasons["b"]
    assert "0.6" in scheduler.reasons["b"]


def test_rungs_reached_before_a_restart_count_as_if_there_had_been_none() -> None:
    live = make_scheduler(PLAN, TASK, [])
    replayed = make_scheduler(PLAN, TASK, [record("00000", 0.8, 0.9), record("00001", 0.7)])
    assert isinstance(live, StudyASHA)
    assert isinstance(replayed, StudyASHA)
    decide(live, "00000", 4, 0.8)
    decide(live, "00001", 4, 0.7)
    for score, expected in [(0.74, "STOP"), (0.9, "CONTINUE")]:
        assert decide(live, f"n{score}", 4, score) == expected
        assert decide(replayed, f"n{score}", 4, score) == expected


def test_minimising_keeps_the_small() -> None:
    task = Task("t", "regression", DataSource(), "text", "label", "mse", "minimize", ("mse",))
    scheduler = make_scheduler(PLAN, task, [])
    assert isinstance(scheduler, StudyASHA)
    assert decide(scheduler, "a", 4, 0.2) == "CONTINUE"
    assert decide(scheduler, "b", 4, 0.9) == "STOP"


def test_a_failed_trial_leaves_the_rungs_alone() -> None:
    scheduler = make_scheduler(PLAN, TASK, [])
    assert isinstance(scheduler, StudyASHA)
    trial = SimpleNamespace(trial_id="x")
    scheduler.on_trial_add(None, trial)
    scheduler.on_trial_complete(None, trial, {"step": 0, "failed": "diverged"})
    assert decide(scheduler, "a", 4, 0.1) == "CONTINUE"


@pytest.mark.parametrize("name", ["none"])
def test_none_stops_nobody(name: str) -> None:
    assert isinstance(make_scheduler(SearchPlan(scheduler="none"), TASK, []), FIFOScheduler)
