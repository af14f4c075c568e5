"""What a first champion must beat significantly: the same answer for every test row, or the base without an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loraxs_search.records import Task, Yardstick, alone_yardstick
from loraxs_search.registry.significance import score_of
from loraxs_search.registry.test_predictions import ScoredRows
from loraxs_search.tasks.kinds import Metric, kind_of

CONSTANT = "constant"


@dataclass(frozen=True, eq=False)
class YardstickAnswer:
    """A yardstick's answers to the test rows, and their score; `name` is what people read."""

    name: str
    rows: ScoredRows
    score: float


def hardest_answer(
    task: Task,
    metric: Metric,
    sign: float,
    rows: ScoredRows,
    yardsticks: Sequence[Yardstick],
    alone: ScoredRows | None,
) -> YardstickAnswer | None:
    """Return the better one of the constant answer and the base alone; None where neither has a score.

    Args:
        metric: It decides; `sign` is 1 when more of it is better, -1 when less is.
        rows: Of the adapter that they are held against.
        yardsticks: The study's.
        alone: Answers of the base alone, where the study has them.
    """
    both = [_scored("the constant answer", metric, _constant(task, metric, sign, rows, yardsticks))]
    if alone is not None:
        measured = alone_yardstick(yardsticks)
        both.append(_scored(f"the base alone{f' ({measured.name})' if measured else ''}", metric, alone))
    return max(filter(None, both), key=lambda answer: sign * answer.score, default=None)


def _scored(name: str, metric: Metric, rows: ScoredRows | None) -> YardstickAnswer | None:
    score = None if rows is None else score_of(metric, rows)
    return None if rows is None or score is None else YardstickAnswer(name, rows, score)


def _constant(
    task: Task, metric: Metric, sign: float, rows: ScoredRows, yardsticks: Sequence[Yardstick]
) -> ScoredRows | None:
    """Return the constant answer to the rows that an adapter was scored on; None where it has no such score.

    It is the study's own, the best one on the train rows. A study that has none is given the best one on the test rows
    themselves, which is harder to beat.
    """
    if metric.column != "predictions":
        return None
    known = next((y.answer for y in yardsticks if y.name == CONSTANT and not y.failed), None)
    if known is not None:
        return _always(rows, known)
    answers = kind_of(task).constants(rows.labels)
    return max(
        (_always(rows, answer) for answer in answers),
        key=lambda said: sign * metric.score(said.predictions, said.labels),
    )


def _always(rows: ScoredRows, answer: float | str) -> ScoredRows:
    return ScoredRows(np.full(len(rows.labels), answer, rows.labels.dtype), rows.labels)
