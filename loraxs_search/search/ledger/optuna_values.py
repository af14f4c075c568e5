"""What Optuna hears of a trial: a score at each report and at the end, or a score and the stored bytes together.

A study of several objectives takes no reports (`Trial.report` raises), so there they are the trial's attributes. A
pruned trial has no values there: `search/tune/front_history.py` shows the sampler which of these were good.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, Trial

from loraxs_search.pareto import Point
from loraxs_search.records import Direction, SearchPlan, Task, TrialReport

_REPORT = "report."  # and the step: an attribute [score, stored bytes]


def directions(task: Task, plan: SearchPlan) -> tuple[Direction, ...]:
    """Return which way each value of a study's trials is better."""
    return (task.search_direction, "minimize") if plan.objectives else (task.search_direction,)


def tell_report(trial: Trial, report: TrialReport, metric: str) -> None:
    """Record a report that the trial does not have yet."""
    if len(trial.study.directions) == 1:
        trial.report(report.metrics[metric], report.step)
    else:
        trial.set_user_attr(f"{_REPORT}{report.step}", _both(report, metric))


def has_report(trial: FrozenTrial, step: int) -> bool:
    """Whether a report of this step was recorded."""
    return step in trial.intermediate_values or f"{_REPORT}{step}" in trial.user_attrs


def last_report(trial: FrozenTrial) -> tuple[int, Point] | None:
    """Return step, score and stored bytes of the last report in a study of two objectives; None before it."""
    steps = [int(name.removeprefix(_REPORT)) for name in trial.user_attrs if name.startswith(_REPORT)]
    if not steps:
        return None
    score, stored = trial.user_attrs[f"{_REPORT}{max(steps)}"]
    return max(steps), (score, stored)


def final_values(study: optuna.Study, report: TrialReport, metric: str) -> float | list[float]:
    """Return what a trial that trained all its steps ends with, by the report of the step that is kept."""
    return report.metrics[metric] if len(study.directions) == 1 else _both(report, metric)


def _both(report: TrialReport, metric: str) -> list[float]:
    return [report.metrics[metric], report.size.stored_bytes]
