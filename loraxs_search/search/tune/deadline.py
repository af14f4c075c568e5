"""When a search has used up its time budget, as commands extend it."""

from __future__ import annotations

from loraxs_search.records import SearchPlan
from loraxs_search.steering.state import SteeringState, extended
from loraxs_search.studies.clock import steady_time


class Deadline:
    """The end of a time budget that all drivers of a study share; it moves when a command extends the budget.

    Args:
        since: When this driver began, less what others before it have worked, seconds since 1970.
    """

    def __init__(self, plan: SearchPlan, state: SteeringState, since: float) -> None:
        self._plan, self._state, self._since = plan, state, since

    @property
    def budget_s(self) -> float | None:
        """The time budget; None where there is none."""
        return extended(self._plan, self._state).time_budget_s

    @property
    def left_s(self) -> float | None:
        """What is left of the budget; None where there is none."""
        return None if self.budget_s is None else max(0.0, self._since + self.budget_s - steady_time())

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up."""
        return self.left_s == 0.0
