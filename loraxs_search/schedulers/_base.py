"""The contract of a scheduler: which trials stop before their last step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from loraxs_search.plugins import ParameterSpec, with_defaults
from loraxs_search.records.codec import Direction
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialReport


class Scheduler(ABC):
    """Decides about each report of a study whether its trial continues; a subclass writes `decide`.

    Who calls: the search's loop, from one thread, once for each report in the order in which reports come. It waits for
    the answer: `decide` takes less than a millisecond with thousands of trials behind it, reads no clock, draws no
    random number that is not seeded by the plan, and touches no file.

    What a trial's scheduler can say: it stops, with the reason, or it continues. It cannot pause a trial or change it.
    Trials that fail or are lost are not reported, so a decision depends only on reports. A stopped trial
    reports no more.

    Restarts: a scheduler is not stored. A driver that continues with a study makes a new one and gives it
    all reports from before, in the order in which they came; it must then stand where the old one stood. Hence the same
    plan and the same reports give the same decisions.

    Raises: `decide` raises nothing for any score, NaN included. An exception ends the search, and no trial is to blame.

    A subclass is registered under its `name`: in `SCHEDULERS`, or by an entry point of the group
    `loraxs_search.schedulers`. A space names it in `search.scheduler` and gives its parameters beside that.
    `tests/contracts/test_schedulers.py` runs on every entry.

    Args:
        plan: The search's: `max_steps` of every trial, and `report_every` steps between two reports; the last report
            comes at `max_steps`. Its `params` hold the scheduler's `parameters`.
        metric: Name of the score in a report.
        direction: Whether larger or smaller scores are better.
    Attributes:
        params: A value for each of the scheduler's `parameters`.
        stopped: Trials that their last report stopped before all their steps, with the reason.
        spares: Returns whether a trial is never stopped; others are compared with it.
    """

    name: ClassVar[str]
    parameters: ClassVar[Mapping[str, ParameterSpec]] = {}

    def __init__(self, plan: SearchPlan, metric: str, direction: Direction) -> None:
        self.plan, self.metric, self.direction = plan, metric, direction
        self.params = with_defaults(self.parameters, plan.params)
        self.stopped: dict[str, str] = {}
        self.spares: Callable[[str], bool] = lambda _: False
        self._steps: dict[str, int] = {}  # of each trial's latest report

    @abstractmethod
    def decide(self, report: TrialReport, score: float) -> str | None:
        """Decide on one report; return why the trial stops, as shown to users, or None if it continues.

        Called once for each step of a trial. About a trial at its last step too, whose answer counts for nothing.

        Args:
            report: Its `peers` are trials that were scored in the same evaluation: id to (step, score). Their own
                reports come before or after this one; a peer that dies in between never reports.
            score: Validation value of what running trials are compared by; may be NaN.
        """

    def report(self, report: TrialReport) -> str | None:
        """Take in a report and return why its trial stops before all its steps, or None.

        A report that has been taken in before changes nothing and gets the same answer.
        """
        trial_id, step = report.trial_id, report.step
        if step > self._steps.get(trial_id, 0):
            self._steps[trial_id] = step
            reason = self.decide(report, report.metrics[self.metric])
            if reason is not None and step < self.plan.max_steps and not self.spares(trial_id):
                self.stopped[trial_id] = reason
        return self.stopped.get(trial_id)
