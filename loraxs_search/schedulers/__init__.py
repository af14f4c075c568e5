"""Schedulers: which trials stop early. Pure decisions, without Ray; `search/tune/loop.py` hands them to Ray Tune.

_base.py     the contract
asha.py      asynchronous successive halving by score
"""

from __future__ import annotations

from loraxs_search.plugins import EntryPoints
from loraxs_search.records.literals import Direction
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialReport
from loraxs_search.schedulers._base import Scheduler
from loraxs_search.schedulers.asha import ASHA


class _NoScheduler(Scheduler):
    """Lets every trial train all its steps."""

    name = "none"

    def decide(self, report: TrialReport, score: float) -> None:
        """Let the trial continue."""


SCHEDULERS: EntryPoints[type[Scheduler]] = EntryPoints(
    "search.scheduler", "loraxs_search.schedulers", ASHA, _NoScheduler
)


def make_scheduler(plan: SearchPlan, metric: str, direction: Direction) -> Scheduler:
    """Return the plan's scheduler, before any report.

    Raises:
        UsageError: there is no scheduler of this name.
    """
    return SCHEDULERS.get(plan.scheduler)(plan, metric, direction)
