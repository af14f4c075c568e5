"""What a champion must beat: the baselines of its study, and the base without an adapter."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loraxs_search.records import (
    Baseline,
    Candidate,
    KeptAnswers,
    PromotionRule,
    Task,
    alone_baseline,
    is_alone,
    is_unmeasured,
)
from loraxs_search.registry.scored_rows import ScoredRows, score_of
from loraxs_search.tasks.baselines import does_fit, fitting_baselines
from loraxs_search.tasks.kinds import Metric, kind_of

CONSTANT = "constant"
_MAX_CONSTANTS = 32  # the likeliest ones; the metric is computed for each


@dataclass(frozen=True, eq=False)
class BaselineAnswer:
    """A baseline's score on the test rows, and its answers; None if the study has kept none. People read `name`."""

    name: str
    score: float
    rows: ScoredRows | None


def baseline_answers(
    rule: PromotionRule,
    task: Task,
    metric: Metric,
    sign: float,
    rows: ScoredRows | None,
    baselines: Sequence[Baseline],
    alone: ScoredRows | None,
    answers: Mapping[str, KeptAnswers],
) -> list[BaselineAnswer]:
    """Return the baselines that the rule requires an adapter to beat, as far as they have a score.

    Args:
        metric: It decides; `sign` is 1 when more of it is better, -1 when less is.
        rows: Of the adapter that they are compared with; None if they were not kept: recorded scores serve then.
        baselines: The study's.
        alone: Answers of the base alone, where the study has them.
        answers: Those of other baselines, by name.
    """
    if rows is None:
        constant = _recorded("the constant answer", metric, next((y for y in baselines if y.name == CONSTANT), None))
    else:
        constant = _scored("the constant answer", metric, _constant(task, metric, sign, rows, baselines))
    found = [constant]
    if rule.require == "all":
        measured = alone_baseline(baselines)
        name = f"the base alone{f' ({measured.name})' if measured else ''}"
        found.append(_scored(name, metric, alone) if alone is not None else _recorded(name, metric, measured))
        others = (one for one in baselines if one.name != CONSTANT and not is_alone(one.name))
        for one in others:
            said = _said(answers.get(one.name), rows)
            if rows is not None and one.answer is not None:
                said = _always(rows, one.answer)
            found.append(_recorded(one.name, metric, one) if said is None else _scored(one.name, metric, said))
    return [answer for answer in found if answer is not None]


def unmeasured(
    task: Task, baselines: Sequence[Baseline], answered: Collection[str], *, has_alone: bool
) -> tuple[str, bool] | None:
    """Return which baseline of a task was not measured, and whether measuring again can help; None if all were.

    Args:
        answered: Names of simple models whose answers to the test rows the study has kept.
        has_alone: Whether it has those of the base alone.
    """
    kind, known = kind_of(task), {one.name: one for one in baselines}
    for one in known.values():
        if is_unmeasured(one) and does_fit(one.name, kind):
            name = f"the base alone ({one.name})" if is_alone(one.name) else one.name
            return f"{name} was not measured: {one.failed}", one.applies
        if not (one.failed or one.answer is not None or is_alone(one.name) or one.name in (*answered, CONSTANT)):
            return f"the answers of {one.name} to the test rows are missing", True
    if missing := [name for name in fitting_baselines(kind) if name not in known]:
        return f"{missing[0]} was not measured", True
    if has_alone or not (kind.shots or any(map(is_alone, known))):
        return None
    measured = alone_baseline(baselines)
    asked = f"the answers of the base alone ({measured.name}) to the test rows are missing" if measured else ""
    return asked or "the base alone was not asked", True


def unlike_rows(finalist: Candidate, answers: Mapping[str, KeptAnswers], rows: ScoredRows | None) -> str:
    """Say which baseline has answered other test rows than the finalist; empty where none has."""
    for name, said in answers.items():
        about = (said.task or finalist.task, said.test_rows or finalist.test_fingerprint)
        if about != (finalist.task, finalist.test_fingerprint):
            return f"the answers of {name} are to test rows of {about[0]} with fingerprint {about[1][:16]}"
        if rows is not None and len(said.values) != len(rows.labels):
            return f"the answers of {name} are to {len(said.values)} test rows, but there are {len(rows.labels)}"
    return ""


def left_out(rule: PromotionRule, baselines: Sequence[Baseline], metric: str) -> list[str]:
    """Say which baselines the rule would require, but cannot: they cannot exist here, or have no such metric."""
    if rule.require != "all":
        return []
    others = [one for one in baselines if one.name != CONSTANT and not is_unmeasured(one)]
    impossible = [f"{one.name} is not required: {one.failed}" for one in others if one.failed]
    unscored = [one.name for one in others if one.test_metrics and metric not in one.test_metrics]
    return [*impossible, *(f"{name} is not compared: it has no {metric}" for name in unscored)]


def _scored(name: str, metric: Metric, rows: ScoredRows | None) -> BaselineAnswer | None:
    score = None if rows is None else score_of(metric, rows)
    return None if rows is None or score is None else BaselineAnswer(name, score, rows)


def _recorded(name: str, metric: Metric, baseline: Baseline | None) -> BaselineAnswer | None:
    score = baseline.test_metrics.get(metric.name) if baseline is not None else None
    return None if score is None else BaselineAnswer(name, score, None)


def _constant(
    task: Task, metric: Metric, sign: float, rows: ScoredRows, baselines: Sequence[Baseline]
) -> ScoredRows | None:
    """Return the constant answer to the rows that an adapter was scored on; None if it has no such score.

    It is the study's own, the best one for the task's metric on the train rows. Where the study has none, or another
    metric decides, it is the best one on the test rows themselves, which is harder to beat.
    """
    if metric.column != "predictions":
        return None
    known = next((y.answer for y in baselines if y.name == CONSTANT and not y.failed), None)
    if known is not None and metric.name == task.metric:
        return _always(rows, known)
    answers = [*kind_of(task).constants(rows.labels)[:_MAX_CONSTANTS], *([] if known is None else [known])]
    return max(
        (_always(rows, answer) for answer in answers),
        key=lambda said: sign * metric.score(said.predictions, said.labels),
    )


def _always(rows: ScoredRows, answer: float | str) -> ScoredRows:
    return ScoredRows(np.full(len(rows.labels), answer, rows.labels.dtype), rows.labels)


def _said(answers: KeptAnswers | None, rows: ScoredRows | None) -> ScoredRows | None:
    if answers is None or rows is None or len(answers.values) != len(rows.labels):
        return None
    return ScoredRows(np.asarray(answers.values, rows.labels.dtype), rows.labels)
