"""ASHA that knows which trials were scored together, says why it stopped one, and can be told of earlier reports."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from loraxs_search.records import Direction, SearchPlan, Task, TrialReport, from_json
from loraxs_search.search.tune.schedulers.rungs import OrderedBracket
from loraxs_search.search.tune.trainable import OBJECTIVE, REPORT, SPEC, STEP


class StudyASHA(AsyncHyperBandScheduler):  # type: ignore[misc]  # ray is untyped
    """Asynchronous successive halving for one metric whose trials may fail without a value.

    Rungs know trials by their ids in the study. `stopped` has those that their last report stopped, with the reason: a
    driver may die between that report and the end that follows from it.
    """

    def __init__(self, plan: SearchPlan, direction: Direction) -> None:
        super().__init__(
            time_attr=STEP,
            metric=OBJECTIVE,
            mode="max" if direction == "maximize" else "min",
            max_t=plan.max_steps,
            grace_period=plan.report_every,
            reduction_factor=plan.reduction_factor,
        )
        self._bracket = OrderedBracket(plan.report_every, plan.max_steps, plan.reduction_factor)
        self._brackets = [self._bracket]
        self.stopped: dict[str, str] = {}
        self._max_steps, self._kept = plan.max_steps, f"1/{plan.reduction_factor}"

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _ours(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        peers = from_json(TrialReport, result[REPORT]).peers if REPORT in result else {}
        return self._decide(_ours(trial), result, peers)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if OBJECTIVE in result:
            super().on_trial_complete(tune_controller, _ours(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _ours(trial))

    def replay(self, reports: Iterable[TrialReport], metric: str) -> None:
        """Fill the rungs with what was reported before a restart, in the same order: each decision is what it was."""
        trials: dict[str, SimpleNamespace] = {}
        for report in reports:
            if report.trial_id not in trials:
                trials[report.trial_id] = SimpleNamespace(trial_id=report.trial_id)
                super().on_trial_add(None, trials[report.trial_id])
            result = {STEP: report.step, OBJECTIVE: report.metrics[metric]}
            self._decide(trials[report.trial_id], result, report.peers)

    def _decide(self, trial: SimpleNamespace, result: dict[str, Any], peers: Mapping[str, tuple[int, float]]) -> str:
        for peer, (step, score) in peers.items():
            self._bracket.announce(peer, step, self._metric_op * score)
        decision = str(super().on_trial_result(None, trial, result))
        self.stopped.pop(trial.trial_id, None)  # it has gone on all the same, in a study of an earlier version
        if decision == TrialScheduler.STOP and result[STEP] < self._max_steps:
            self.stopped[trial.trial_id] = (
                f"ASHA stopped it at step {result[STEP]}: {result[OBJECTIVE]:.4g} is not among the best {self._kept} "
                "that reached this step"
            )
        return decision


def _ours(trial: Any) -> SimpleNamespace:
    """Return a trial under its id in the study: Tune gives it another one after each restart of the driver."""
    return SimpleNamespace(trial_id=json.loads(trial.config[SPEC])["trial_id"])


def make_scheduler(plan: SearchPlan, task: Task, before: Iterable[TrialReport]) -> StudyASHA | FIFOScheduler:
    """Return the plan's scheduler, told of the reports `before` a restart; `none` lets every trial finish."""
    if plan.scheduler == "none":
        return FIFOScheduler()
    scheduler = StudyASHA(plan, task.direction)
    scheduler.replay(before, task.metric)
    return scheduler


def stopped(scheduler: StudyASHA | FIFOScheduler) -> dict[str, str]:
    """Return the trials that their last report has stopped before all their steps, by id, with the reason."""
    return scheduler.stopped if isinstance(scheduler, StudyASHA) else {}
