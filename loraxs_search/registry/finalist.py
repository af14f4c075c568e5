"""Which adapter of a search is its finalist, by which metric. Pure: validation rows choose, test rows play no part.

How much of a score is luck of the seed is the mean and deviation over a candidate and its refits.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from loraxs_search.manifest import Manifest
from loraxs_search.records.codec import Direction, sign_of
from loraxs_search.records.search import Candidate, PromotionRule
from loraxs_search.records.task import Task

NOISE = 1e-9  # 0.805 - 0.800 > 0.005 in floating point: a bound is met when missed by no more than this


@dataclass(frozen=True)
class Criterion:
    """A rule's metric, and the sign that turns it so that more is better."""

    metric: str
    sign: float

    @classmethod
    def of(cls, rule: PromotionRule, task: Task) -> Criterion:
        """Return a rule's criterion for a task, whose own metric and direction are the defaults."""
        metric = rule.metric or task.metric
        known = better_when(metric, task.direction) if rule.metric else task.direction
        return cls(metric, sign_of(rule.direction or known))

    def value(self, metrics: Mapping[str, float]) -> float:
        """Return the metric, turned so that more is better."""
        return self.sign * metrics[self.metric]

    def fault(self, metrics: Mapping[str, float], rows: str) -> str | None:
        """Say why these metrics, which are of `rows`, cannot decide."""
        value = metrics.get(self.metric)
        if value is None:
            return f"it has no {rows} {self.metric}"
        return None if math.isfinite(value) else f"its {rows} {self.metric} is {value}"

    def show(self, metrics: Mapping[str, float]) -> str:
        """Return name and value, as shown to users."""
        return f"{self.metric} {metrics[self.metric]:.4f}"

    def describe(self, candidate: Candidate, rows: Literal["validation", "test"] = "validation") -> str:
        """Return a candidate with its score on these rows and its size, as shown to users."""
        metrics = candidate.test_metrics if rows == "test" else candidate.validation_metrics
        error = metrics.get("calibration_error")
        calibrated = "" if error is None else f", calibration error {error:.4f}"
        return f"{candidate.trial_id} ({self.show(metrics)}{calibrated}, {candidate.stored_bytes:,} bytes)"


def better_when(metric: str, otherwise: Direction) -> Direction:
    """Return which way a metric is better, as its task kind declares."""
    from loraxs_search.tasks.kinds import find_metric  # numpy, which reading a champion does without

    known = find_metric(metric)
    return known.direction if known else otherwise


@dataclass(frozen=True)
class SeedStatistics:
    """A metric over seeds.

    Args:
        deviation: Sample standard deviation; None for fewer than two values.
        count: Seeds that have a value.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedStatistics:
        """Return the statistics of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.deviation:.4f}" if self.deviation is not None else "")


def seed_statistics(of: Candidate | Manifest) -> dict[str, SeedStatistics]:
    """Return each validation metric over the adapter itself and the same recipe from other seeds."""
    statistics_of = {}
    for name, value in of.validation_metrics.items():
        others = [refit.validation_metrics[name] for refit in of.refits if name in refit.validation_metrics]
        values = [number for number in (value, *others) if math.isfinite(number)]
        if values:
            statistics_of[name] = SeedStatistics.of(values)
    return statistics_of


def choose(
    rule: PromotionRule, task: Task, candidates: Sequence[Candidate]
) -> tuple[Candidate | None, tuple[str, ...]]:
    """Choose among the adapters of a search, on all validation rows.

    A candidate takes part when it is of this task, has a finite validation metric, and at most `max_bytes`. The best
    metric sets the mark; of those within `tolerance` of it, the one with the fewest stored bytes is chosen (then the
    better metric, then the lower trial id), whatever the order they come in.

    Returns:
        The finalist, None when no candidate may be one, and one sentence for each consideration.
    """
    criterion = Criterion.of(rule, task)
    eligible, reasons = list[Candidate](), list[str]()
    for candidate in sorted(candidates, key=lambda candidate: candidate.name):
        fault = criterion.fault(candidate.validation_metrics, "validation")
        if candidate.task != task.registered_name:
            fault = f"it is of task {candidate.task}"
        elif fault is None and rule.max_bytes is not None and candidate.stored_bytes > rule.max_bytes:
            fault = f"it stores {candidate.stored_bytes:,} bytes, more than max_bytes={rule.max_bytes:,}"
        if fault is None:
            eligible.append(candidate)
        else:
            reasons.append(f"{candidate.trial_id} is out: {fault}")
    if not eligible:
        none = "no trial of a method that may be promoted has trained all its steps"
        return None, (*reasons, "no candidate may be promoted" if candidates else none)

    def value(candidate: Candidate) -> float:
        return criterion.value(candidate.validation_metrics)

    best = max(eligible, key=value)  # the first of equals, in trial order
    peers = [c for c in eligible if value(best) - value(c) <= rule.tolerance + NOISE]
    finalist = min(peers, key=lambda c: (c.stored_bytes, -value(c), c.name))
    reasons.append(f"best of {len(eligible)} on validation rows: {criterion.describe(best)}")
    if finalist is not best:
        reasons.append(f"smallest within tolerance={rule.tolerance:g} of it: {criterion.describe(finalist)}")
    return finalist, tuple(reasons)


def trial_of(trial_id: str) -> str:
    """Return the trial whose recipe an adapter was trained by: of a refit, the trial that it repeats."""
    return trial_id.partition(".")[0]
