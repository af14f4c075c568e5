"""The metric that decides, and which way it is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from loraxs_search.records import Direction, PromotionRule, Task

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
        return cls(metric, 1.0 if (rule.direction or known) == "maximize" else -1.0)

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
        """Return name and value, for people."""
        return f"{self.metric} {metrics[self.metric]:.4f}"


def better_when(metric: str, otherwise: Direction) -> Direction:
    """Return which way a metric is better, as its task kind declares."""
    from loraxs_search.tasks.kinds import find_metric  # numpy, which reading a champion does without

    known = find_metric(metric)
    return known.direction if known else otherwise
