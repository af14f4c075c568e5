"""ASHA that says why it stopped a trial and can be told of rungs reached before a restart."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from loraxs_search.records import Direction, SearchPlan, Task, TrialReport
from loraxs_search.search.rungs import OrderedBracket
from loraxs_search.search.trainable import OBJECTIVE, STEP


class StudyASHA(AsyncHyperBandScheduler):  # type: ignore[misc]  # ray is untyped
    """Asynchronous successive halving with reasons, for one metric whose trials may fail without a value."""

    def __init__(self, plan: SearchPlan, direction: Direction) -> None:
        super().__init__(
            time_attr=STEP,
            metric=OBJECTIVE,
            mode="max" if direction == "maximize" else "min",
            max_t=plan.max_steps,
            grace_period=plan.report_every,
            reduction_factor=plan.reduction_factor,
        )
        self._brackets = [OrderedBracket(plan.report_every, plan.max_steps, plan.reduction_factor)]
        self.reasons: dict[str, str] = {}
        self.stopped_before: dict[str, str] = {}
        self._max_steps = plan.max_steps
        self._kept = f"1/{plan.reduction_factor}"

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self.reasons[trial.trial_id] = self._reason(result[STEP], result[OBJECTIVE])
        return str(decision)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if OBJECTIVE in result:
            super().on_trial_complete(tune_controller, trial, result)

    def replay(self, reports: Iterable[TrialReport], metric: str) -> None:
        """Fill the rungs with what was reported before a restart, in the same order and by the same calls.

        So each decision is what it was, and those that stopped a trial are kept: a driver may have died between a
        report and the end that follows from it.
        """
        trials: dict[str, SimpleNamespace] = {}
        for report in reports:
            if report.trial_id not in trials:
                trials[report.trial_id] = SimpleNamespace(trial_id=f"replayed-{report.trial_id}")
                super().on_trial_add(None, trials[report.trial_id])
            score = report.metrics[metric]
            decision = super().on_trial_result(None, trials[report.trial_id], {STEP: report.step, OBJECTIVE: score})
            if decision == TrialScheduler.STOP and report.step < self._max_steps:
                self.stopped_before[report.trial_id] = self._reason(report.step, score)

    def _reason(self, step: int, score: float) -> str:
        return f"ASHA stopped it at step {step}: {score:.4g} is not among the best {self._kept} that reached this step"


def make_scheduler(plan: SearchPlan, task: Task, before: Iterable[TrialReport]) -> StudyASHA | FIFOScheduler:
    """Return the plan's scheduler, told of the reports `before` a restart; `none` lets every trial finish."""
    if plan.scheduler == "none":
        return FIFOScheduler()
    scheduler = StudyASHA(plan, task.direction)
    scheduler.replay(before, task.metric)
    return scheduler


def stopped_before(scheduler: StudyASHA | FIFOScheduler) -> dict[str, str]:
    """Return the trials that a report before the restart had stopped, by id, with the reason; ended or not."""
    return scheduler.stopped_before if isinstance(scheduler, StudyASHA) else {}
