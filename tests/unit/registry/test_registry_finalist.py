"""Who the finalist of a search is: validation rows choose."""

from __future__ import annotations

import dataclasses
import math

from loraxs_search.records.search import Candidate, PromotionRule
from loraxs_search.records.task import Task
from loraxs_search.registry.finalist import choose

from .conftest import TASK, plain_candidate


def _chosen(rule: PromotionRule, candidates: list[Candidate], task: Task = TASK) -> str | None:
    finalist = choose(rule, task, candidates)[0]
    return finalist.trial_id if finalist else None


def test_the_best_on_validation_rows_is_chosen_whatever_it_reaches_on_test_rows():
    found = [plain_candidate("t0", 0.7, test_metrics={"accuracy": 0.9}), plain_candidate("t0.1", 0.8)]
    assert _chosen(PromotionRule(), found) == "t0.1"
    assert choose(PromotionRule(), TASK, found)[1] == (
        "best of 2 on validation rows: t0.1 (accuracy 0.8000, 1,000 bytes)",
    )


def test_within_tolerance_the_smallest_is_chosen():
    found = [plain_candidate("t0", 0.805, 3000), plain_candidate("t1", 0.800, 1000), plain_candidate("t2", 0.799, 10)]
    choice = choose(PromotionRule(tolerance=0.005), TASK, found)
    assert choice[0] == found[1]  # 0.805 - 0.800 > 0.005 in floating point, and yet within it
    assert "smallest within tolerance=0.005" in choice[1][1]


def test_equal_size_goes_to_the_better_metric_then_the_lower_id():
    same = [plain_candidate("t2", 0.80), plain_candidate("t1", 0.80), plain_candidate("t0", 0.79)]
    assert _chosen(PromotionRule(tolerance=0.1), same) == "t1"


def test_another_metric_is_read_in_its_own_direction_unless_the_rule_says():
    scores = {"t0": {"accuracy": 0.8, "mse": 0.1}, "t1": {"accuracy": 0.7, "mse": 0.2}}
    found = [plain_candidate(name, 0, validation_metrics=metrics) for name, metrics in scores.items()]
    assert _chosen(PromotionRule(metric="mse"), found) == "t0"
    assert _chosen(PromotionRule(), found, dataclasses.replace(TASK, metric="mse", direction="minimize")) == "t0"
    assert _chosen(PromotionRule(metric="mse", direction="maximize"), found) == "t1"


def test_what_may_not_take_part_is_named_with_its_reason():
    rule = PromotionRule(max_bytes=4000)
    for other, why in (
        ({"validation_metrics": {}}, "no validation accuracy"),
        ({"validation_metrics": {"accuracy": math.nan}}, "is nan"),
        ({"stored_bytes": 5000}, "more than max_bytes=4,000"),
        ({"task": "elsewhere"}, "of task elsewhere"),
    ):
        bad = dataclasses.replace(plain_candidate("bad", 0.99), **other)
        finalist, reasons = choose(rule, TASK, [bad, plain_candidate("t0", 0.5)])
        assert finalist is not None
        assert finalist.trial_id == "t0"
        assert why in reasons[0]
        assert choose(rule, TASK, [bad])[0] is None
    assert choose(PromotionRule(), TASK, [])[0] is None
