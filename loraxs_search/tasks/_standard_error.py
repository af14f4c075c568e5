"""How far the scores of equally good answers lie apart, when they are taken on as many other rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loraxs_search.records import StandardError
from loraxs_search.tasks._constant_answer import repeated
from loraxs_search.tasks.metrics import Metric, Values

_RESAMPLES, _MOST_ROWS = 100, 1000  # of the bootstrap; an error falls with the square root of the rows


def standard_error(metric: Metric, labels: Values, constant: float | str) -> StandardError:
    """Return the standard error of a metric on these rows.

    It depends on how good the answers are. Here half of them are right and half the constant answer: they are half-way
    between what costs nothing and what cannot be better.

    Args:
        metric: One that is taken of answers.
        labels: Of the rows, (N,).
    """
    guesses = repeated(constant, len(labels))
    reach = abs(metric.score(labels, labels) - metric.score(guesses, labels))
    if (rows := _row_scores(metric, labels, labels)) is not None:
        both = np.concatenate([rows, _row_scores(metric, guesses, labels)])
        return StandardError(float(both.std() / np.sqrt(len(labels))), float(reach))
    return StandardError(_bootstrapped(metric, labels, guesses), float(reach))


def _row_scores(metric: Metric, answers: Values, labels: Values) -> npt.NDArray[np.float64] | None:
    """Return each row's score, (N,), where the metric is their mean."""
    if metric.of_rows is not None:
        return metric.of_rows(answers, labels)
    return (answers == labels).astype(np.float64) if metric.is_share else None


def _bootstrapped(metric: Metric, labels: Values, guesses: Values) -> float:
    draw = np.random.default_rng(0)
    answers = np.where(draw.random(len(labels)) < 0.5, labels, guesses)
    size = min(len(labels), _MOST_ROWS)
    drawn = (draw.integers(len(labels), size=size) for _ in range(_RESAMPLES))
    scores = [metric.score(answers[rows], labels[rows]) for rows in drawn]
    return float(np.std(scores) * np.sqrt(size / len(labels)))
