"""The constant answer: the same one to every row."""

from __future__ import annotations

import numpy as np

from loraxs_search.tasks.kinds import TaskKind
from loraxs_search.tasks.metrics import Values

_MAX_CONSTANTS = 32  # the likeliest ones; a metric is computed for each


def constant_answer(kind: TaskKind, train: Values) -> int | float | str:
    """Return the constant answer that is best on the train rows, by the task's metric.

    Of equally good answers the likeliest wins: the most frequent label, or the mean.

    Args:
        train: Their labels, (N,).
    """
    sign, metric = 1.0 if kind.task.direction == "maximize" else -1.0, kind.metrics[kind.task.metric]
    answers = kind.constants(train)[:_MAX_CONSTANTS]
    if metric.column != "predictions":  # the likeliest: no answer has such a score
        return answers[0]
    gains = [sign * metric.score(repeated(answer, len(train)), train) for answer in answers]
    return answers[int(np.argmax(gains))]


def repeated(answer: float | str, num_rows: int) -> Values:
    """Return the same answer for so many rows, (num_rows,)."""
    return np.full(num_rows, answer, object if isinstance(answer, str) else None)
