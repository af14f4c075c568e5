"""Which trials are candidates: the best ones, or the best and the smallest within tolerance of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loraxs_search.records.promotion import PromotionRule
from loraxs_search.records.search import CheckpointSelection, SearchPlan
from loraxs_search.records.task import DataSource, Task
from loraxs_search.records.trial import AdapterSize, TrialRecord, TrialReport, TrialState
from loraxs_search.search.driver.finalize import candidate_trials, completed_trials

TASK = Task("t", "regression", DataSource(), "text", "label", "pearson", "maximize", ("pearson", "mse"))
SMALLEST = PromotionRule(choose="smallest", tolerance=0.02, candidates=3)


def trials(*points: tuple[float, int], metric: str = "pearson") -> list[TrialRecord]:
    """Return complete trials, which are best first."""
    records = []
    for number, (score, stored) in enumerate(points):
        name = f"{number:05d}"
        report = TrialReport(name, 8, {metric: score}, 1.0, 1.0, 10, AdapterSize(1, 1, stored))
        records.append(TrialRecord(name, {}, TrialState.COMPLETE, reports=(report,)))
    return records


FOUND = trials((0.90, 9000), (0.895, 9500), (0.89, 6000), (0.885, 3000), (0.885, 3000), (0.8, 2000), (0.5, 1000))


def chosen(rule: PromotionRule, found: list[TrialRecord] = FOUND, task: Task = TASK) -> list[int]:
    return [int(record.trial_id) for record in candidate_trials(found, rule, task, SearchPlan())]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (PromotionRule(), [0, 1, 2]),
        (PromotionRule(max_bytes=5000), [3, 4, 5]),
        (PromotionRule(max_bytes=10), [0, 1, 2]),  # none fits, which the rule will say
        (replace(SMALLEST, candidates=9), [0, 3, 2, 5, 6, 1, 4]),  # filled up with the others, best first
        (replace(SMALLEST, max_bytes=10), [0, 3, 2]),
        (SMALLEST, [0, 3, 2]),
        (replace(SMALLEST, tolerance=0.2), [0, 5, 3]),
        (replace(SMALLEST, tolerance=0.001), [0, 2, 3]),  # nothing is within it but the best
        (replace(SMALLEST, max_bytes=5000, tolerance=0.1), [3, 5, 6]),
    ],
)
def test_candidates_follow_the_rule(rule: PromotionRule, expected: list[int]) -> None:
    assert chosen(rule) == expected


def test_of_equal_scores_the_smallest_comes_first_then_the_oldest() -> None:
    found = trials((0.9, 500), (0.977, 9000), (0.977, 3000), (0.977, 3000))
    selection = CheckpointSelection("pearson", "maximize")
    assert [int(record.trial_id) for record in completed_trials(found, selection)] == [2, 3, 1, 0]


def test_losses_are_better_when_small() -> None:
    task = replace(TASK, metric="mse", direction="minimize")
    found = trials((0.1, 9000), (0.11, 3000), (0.3, 1000), metric="mse")
    assert chosen(SMALLEST, found, task) == [0, 1, 2]


def test_where_reports_were_scored_by_another_metric_candidates_are_spread_over_the_sizes() -> None:
    """A tolerance of the metric says nothing about a loss."""
    task = replace(TASK, report_metric="loss", report_direction="minimize")
    found = trials((0.1, 9000), (0.11, 8500), (0.12, 8000), (0.2, 3000), (0.3, 1000), metric="loss")
    assert chosen(SMALLEST, found, task) == [0, 2, 4]


def test_a_study_without_complete_trials_has_no_candidates() -> None:
    assert chosen(SMALLEST, []) == []
