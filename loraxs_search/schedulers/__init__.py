"""Schedulers: which trials stop early. Pure decisions, without Ray; `search/tune/loop.py` hands them to Ray Tune.

_base.py     the contract
asha.py      asynchronous successive halving by score
"""

from __future__ import annotations

from loraxs_search.plugins import EntryPoints, with_defaults
from loraxs_search.records.literals import Direction
from loraxs_search.records.search import SearchPlan
from loraxs_search.schedulers._base import Scheduler, SchedulerConfig, ScoredTrial
from loraxs_search.schedulers.asha import ASHA


class NoScheduler(Scheduler):
    """Lets every trial train all its steps."""

    name = "none"

    def decide(self, trial: ScoredTrial) -> None:
        """Let the trial continue."""


SCHEDULERS: EntryPoints[type[Scheduler]] = EntryPoints(
    "search.scheduler", "loraxs_search.schedulers", ASHA, NoScheduler
)


def make_scheduler(plan: SearchPlan, direction: Direction) -> Scheduler:
    """Return the plan's scheduler, before any report.

    Raises:
        UsageError: there is no scheduler of this name.
    """
    entry = SCHEDULERS.get(plan.scheduler)
    parameters = with_defaults(entry.parameters, plan.params)
    return entry(SchedulerConfig(direction, plan.max_steps, plan.report_every, parameters))
