"""ASHA decides as Ray's does and knows which trials were scored together."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler
from support.toys import METRIC, report, together

from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialReport
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.schedulers._base import Scheduler

PLAN = SearchPlan(max_steps=16, report_every=4, params={"reduction_factor": 2})


def asha(*before: TrialReport, plan: SearchPlan = PLAN, direction: Any = "maximize") -> Scheduler:
    scheduler = SCHEDULERS.get(plan.scheduler)(plan, METRIC, direction)
    for each in before:
        scheduler.report(each)
    return scheduler


def goes_on(scheduler: Scheduler, trial_id: str, step: int, score: float) -> bool:
    return scheduler.report(report(trial_id, step, score)) is None


SCORES = st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.integers(0, 3).map(float))


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@given(
    st.lists(st.tuples(st.integers(0, 11), SCORES), max_size=60),
    st.sampled_from([(4, 64, 2), (4, 64, 3), (40, 160, 2), (5, 64, 4), (1, 1000, 10), (3, 96, 6), (7, 7, 2)]),
    st.sampled_from(["maximize", "minimize"]),
)
def test_it_decides_as_rays_own_does(reports, shape, direction):
    every, steps, factor = shape
    scheduler = asha(
        plan=SearchPlan(max_steps=steps, report_every=every, params={"reduction_factor": factor}), direction=direction
    )
    rays = AsyncHyperBandScheduler(
        time_attr="step", metric="score", mode=direction[:3], max_t=steps, grace_period=every, reduction_factor=factor
    )
    reached: dict[int, int] = {}
    for number, score in reports:
        if str(number) in scheduler.stopped:
            continue
        trial: Any = SimpleNamespace(trial_id=str(number))
        if number not in reached:
            rays.on_trial_add(None, trial)  # type: ignore[arg-type]
        reached[number] = step = min(reached.get(number, 0) + every, steps)
        if step < steps:  # about the last report nobody asks
            decision = rays.on_trial_result(None, trial, {"step": step, "score": score})  # type: ignore[arg-type]
            assert goes_on(scheduler, str(number), step, score) == (decision == "CONTINUE")


def test_trials_that_were_scored_together_are_held_against_each_other_whichever_reports_first():
    scores = {"00000": 0.5, "00001": 0.8, "00002": 0.6, "00003": 0.9}
    reports, losses = together(scores, 4), together({name: -score for name, score in scores.items()}, 4)
    for order in (1, -1):
        assert asha(*losses[::order], direction="minimize").stopped.keys() == {"00000", "00002"}
        stopped = asha(*reports[::order]).stopped
        assert stopped.keys() == {"00000", "00002"}
        assert stopped["00002"] == "ASHA stopped it at step 4: 0.6 is not among the best 1/2 that reached this step"


def test_a_peer_whose_own_report_never_came_counts():
    first = together({"00000": 0.5, "00001": 0.8}, 4)[0]  # the driver died before the other was journaled
    scheduler = asha(first)
    assert scheduler.stopped.keys() == {"00000"}
    assert goes_on(scheduler, "00001", 4, 0.8)
    assert not goes_on(scheduler, "00002", 4, 0.6)
