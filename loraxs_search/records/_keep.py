"""Which of a trial's reports its adapter is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loraxs_search.records._search import SearchPlan
from loraxs_search.records._task import Task
from loraxs_search.records._trial import TrialReport
from loraxs_search.records._words import Direction


@dataclass(frozen=True)
class KeepRule:
    """Which step of a trial that has trained all its steps becomes its adapter.

    Args:
        metric: What reports are compared by; of equal ones the earlier is kept.
        keep: `last` takes the last step, whatever its report.
    """

    metric: str
    direction: Direction
    keep: Literal["last", "best"] = "last"

    @classmethod
    def of(cls, task: Task, plan: SearchPlan) -> KeepRule:
        """Return the rule of a study."""
        return cls(task.search_metric, task.search_direction, plan.keep)

    def kept(self, reports: Sequence[TrialReport]) -> TrialReport:
        """Return the report of the step that is kept, of at least one."""
        if self.keep == "last":
            return reports[-1]
        sign = 1.0 if self.direction == "maximize" else -1.0
        return max(reports, key=lambda report: (sign * report.metrics[self.metric], -report.step))
