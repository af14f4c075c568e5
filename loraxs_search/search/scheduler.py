"""ASHA that says why it stopped a trial and can be told of rungs reached before a restart."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from loraxs_search.records import Direction, SearchPlan, Task, TrialRecord
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
        self._kept = f"1/{plan.reduction_factor}"

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self.reasons[trial.trial_id] = (
                f"ASHA stopped it at step {result[STEP]}: {result[OBJECTIVE]:.4g} is not among the best "
                f"{self._kept} that reached this step"
            )
        return str(decision)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if OBJECTIVE in result:
            super().on_trial_complete(tune_controller, trial, result)

    def replay(self, records: Iterable[TrialRecord], metric: str) -> None:
        """Fill the rungs with what trials reported before a restart, through the same calls as live reports."""
        for record in records:
            trial = SimpleNamespace(trial_id=f"replayed-{record.trial_id}")
            super().on_trial_add(None, trial)
            for report in record.reports:
                super().on_trial_result(None, trial, {STEP: report.step, OBJECTIVE: report.metrics[metric]})


def make_scheduler(plan: SearchPlan, task: Task, before: Iterable[TrialRecord]) -> StudyASHA | FIFOScheduler:
    """Return the plan's scheduler, told of the trials `before` a restart; `none` lets every trial finish."""
    if plan.scheduler == "none":
        return FIFOScheduler()
    scheduler = StudyASHA(plan, task.direction)
    scheduler.replay(before, task.metric)
    return scheduler
