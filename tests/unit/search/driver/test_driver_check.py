"""`check` from Python: what the command line prints, as a typed result.

What a search is said to take: counted by the scheduler itself, measured by the host itself.
"""

from __future__ import annotations

import json
import math

import pytest
from support.studies import TASK

import loraxs_search
from loraxs_search.errors import SpaceError
from loraxs_search.records.base import BaseModel
from loraxs_search.records.codec import to_json
from loraxs_search.records.host import HostInfo
from loraxs_search.records.promotion import PromotionRule
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import DataReport
from loraxs_search.search.driver.check import Measured, add_up, simulated_steps


def test_it_is_what_the_command_line_prints(fresh_home, tiny_space, say):
    checked = loraxs_search.check(str(tiny_space), data=True, overrides={"search.trials": 3})
    printed = say("check", str(tiny_space), "--data", "--set", "search.trials=3", "--json").ok
    assert json.loads(printed) == json.loads(to_json(checked))
    assert checked.rows is not None
    assert set(checked.rows) == {"train", "validation", "test"}
    assert (checked.estimate, checked.no_estimate) == (None, "")
    assert [row["text"][:5] for row in checked.first_rows] == ["[CLS]"] * 2
    assert loraxs_search.check(str(tiny_space)).rows is None


def test_it_reports_every_fault(fresh_home, tiny_space):
    with pytest.raises(SpaceError, match=r"search\.trials[\s\S]*search\.max_steps"):
        loraxs_search.check(str(tiny_space), overrides={"search.trials": 0, "search.max_steps": 0})


PLAN = SearchPlan(trials=12, max_steps=160, report_every=40)
ROWS = {"train": 1000, "validation": 500, "test": 1000}
INFO = HostInfo(
    BaseModel("b", "", "0" * 64), (), 0, "d", ROWS, "cpu", "float32", {}, data=DataReport({**ROWS, "validation": 2000})
)
FAST = Measured("cpu", at_once=6, num_steps=5, step_s=0.1, scoring_s=1.0, answer_s=0.0, start_s=10.0)


def test_without_early_stopping_every_step_is_counted():
    steps, reports = simulated_steps(SearchPlan(trials=5, max_steps=25, report_every=10, scheduler="none"), at_once=2)
    assert (set(steps), reports) == ({125}, 5 * 3)


def test_early_stopping_leaves_a_part_that_its_rungs_allow():
    plan = SearchPlan(trials=60, max_steps=160, report_every=40)
    steps, reports = simulated_steps(plan, at_once=6)
    # Were it right at once, half of the trials would stop at 40, and half of the rest at 80.
    ideal = 60 * 40 + 30 * 40 + 15 * 80
    assert ideal * 0.75 < min(steps) <= max(steps) < 60 * 160
    assert ideal * 0.9 < sum(steps) / len(steps) < ideal * 1.6
    assert simulated_steps(plan, at_once=6) == (steps, reports), "the same each time"


def test_parts_add_up():
    rule = PromotionRule(candidates=3, seeds=2)
    plan = SearchPlan(trials=4, max_steps=100, report_every=50, scheduler="none")
    estimate = add_up(plan, rule, TASK, INFO, FAST)
    assert estimate.parts_s == {
        "start": 10.0,
        "trials": pytest.approx(4 * 100 * 0.1 + 8 * 1.0),
        "refits": pytest.approx(6 * (100 * 0.1 + 2 * 1.0)),
        "candidates": pytest.approx((9 * 2000 + 1000) / 500),
    }
    assert (estimate.num_trials, estimate.num_refits, estimate.step_share) == (4, 6, (1.0, 1.0))
    middle = sum(estimate.parts_s.values())
    assert (estimate.least_s, estimate.most_s) == (pytest.approx(middle * 0.8), pytest.approx(middle * 1.2))
    assert estimate.least_device_hours == pytest.approx((middle - 10) * 0.8 / 3600)


@pytest.mark.parametrize(
    ("budget_s", "trials_s", "refits", "candidates_s"),
    [(240.0, 240 - 10 - (72 + 38), 6, 38), (100.0, 100 - 10 - 50, 2, 22), (20.0, 0, 0, 10)],
)
def test_a_time_budget_bounds_trials_and_refits(budget_s, trials_s, refits, candidates_s):
    """The end takes at most half of it: refits that do not fit are left out, then candidates."""
    plan = SearchPlan(trials=100, max_steps=100, report_every=50, scheduler="none", time_budget=budget_s)
    estimate = add_up(plan, PromotionRule(candidates=3, seeds=2), TASK, INFO, FAST)
    parts = {"start": 10.0, "trials": trials_s, "refits": 12.0 * refits, "candidates": candidates_s}
    assert estimate.parts_s == pytest.approx(parts)
    assert sum(parts.values()) <= budget_s


def test_early_stopping_widens_the_range():
    estimate = add_up(PLAN, PromotionRule(seeds=0), TASK, INFO, FAST)
    low, high = estimate.step_share
    assert 0 < low < high <= 1
    assert estimate.least_s < sum(estimate.parts_s.values()) < estimate.most_s


def test_a_space_is_measured_on_this_machine_unless_trials_start_from_what_a_search_makes(tiny_space):
    checked = loraxs_search.check(str(tiny_space), estimate=True, overrides={"start_from": "another-task"})
    assert (checked.estimate, "start from" in checked.no_estimate) == (None, True)
    estimate = loraxs_search.check(str(tiny_space), estimate=True).estimate
    assert estimate is not None
    assert 1 <= estimate.measured.at_once <= 6
    assert (estimate.num_trials, estimate.num_refits) == (6, 2)
    assert 0 < estimate.least_s < estimate.most_s < math.inf
    assert min(estimate.parts_s.values()) > 0
    assert estimate.measured.device.startswith("cpu")
