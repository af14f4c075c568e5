"""What a champion must beat: the baselines of its study, and the base without an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from loraxs_search.tasks.baselines import does_fit
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
        found += [_recorded(one.name, metric, one, _said(answers.get(one.name), rows)) for one in others]
    return [answer for answer in found if answer is not None]


def unmeasured(rule: PromotionRule, task: Task, baselines: Sequence[Baseline], *, has_alone: bool) -> str:
    """Say which required baseline was not measured, and why; empty where all were.

    A model that takes too long counts for nothing. The base alone is what an adapter of its kind is for.

    Args:
        has_alone: Whether the study has the answers of the base alone to the test rows.
    """
    if rule.require != "all":
        return ""
    asked, kind = [one for one in baselines if is_alone(one.name)], kind_of(task)
    if failed := next(filter(is_unmeasured, asked), None):
        return f"the base alone ({failed.name}) could not be asked: {failed.failed}"
    others = (one for one in baselines if not is_alone(one.name) and does_fit(one.name, kind))
    if failed := next(filter(is_unmeasured, others), None):
        return f"{failed.name} could not be measured: {failed.failed}"
    if not asked and not kind.shots:
        return ""
    if (measured := alone_baseline(baselines)) and not has_alone:
        return f"the answers of the base alone ({measured.name}) are missing"
    return "" if has_alone else "the base alone was not asked"


def unlike_rows(
    rule: PromotionRule, finalist: Candidate, answers: Mapping[str, KeptAnswers], rows: ScoredRows | None
) -> str:
    """Say which required baseline has answered other test rows than the finalist; empty where none has."""
    for one in finalist.baselines if rule.require == "all" else ():
        said = answers.get(one.name)
        if said is None or one.failed:
            continue
        about = (said.task or finalist.task, said.test_rows or finalist.test_fingerprint)
        if about != (finalist.task, finalist.test_fingerprint):
            return f"the answers of {one.name} are to test rows of {about[0]} with fingerprint {about[1][:16]}"
        if rows is not None and len(said.values) != len(rows.labels):
            return f"the answers of {one.name} are to {len(said.values)} test rows, but there are {len(rows.labels)}"
    return ""


def left_out(rule: PromotionRule, baselines: Sequence[Baseline]) -> list[str]:
    """Say which baselines the rule would require, had they not failed for good."""
    failed = [one for one in baselines if one.failed and one.name != CONSTANT and not is_unmeasured(one)]
    return [f"{one.name} is not required: {one.failed}" for one in failed if rule.require == "all"]


def _scored(name: str, metric: Metric, rows: ScoredRows | None) -> BaselineAnswer | None:
    score = None if rows is None else score_of(metric, rows)
    return None if rows is None or score is None else BaselineAnswer(name, score, rows)


def _recorded(
    name: str, metric: Metric, baseline: Baseline | None, rows: ScoredRows | None = None
) -> BaselineAnswer | None:
    score = baseline.test_metrics.get(metric.name) if baseline is not None else None
    return None if score is None else BaselineAnswer(name, score, rows)


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
    if answers is None or rows is None:
        return None
    return ScoredRows(np.asarray(answers.values, rows.labels.dtype), rows.labels)
