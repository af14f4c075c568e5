"""Answering where an adapter is sure: thresholds that validation rows choose, and what test rows say of them. Pure.

A row's confidence is the probability of the answer that is given to it. An operating point promises an accuracy, such
as 0.95, of the rows whose confidence is at least its threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import UsageError
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.search import OperatingPoint

Numbers = npt.NDArray[np.float64]
Answered = tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]  # confidences of rows, and whether their answers are right

_ERROR = 0.1  # chance that a promise does not hold
_STRICTEST = 0.15  # share of the rows that the first threshold answers
_STEPS = 50  # thresholds, evenly spaced by the share of rows that they answer
_MOST = 1.15 ** np.arange(1, 45)  # times as many rows: up to 470
NUM_BINS = 15


def lower_bound(num_right: Any, num_rows: Any) -> Numbers:
    """Return the one-sided 90 % lower bound of a share, by Clopper and Pearson; arguments are numbers or arrays."""
    from scipy.special import betaincinv

    right, rows = np.broadcast_arrays(np.asarray(num_right, np.float64), np.asarray(num_rows, np.float64))
    bound: Numbers = np.where(right > 0, betaincinv(np.maximum(right, 1e-9), rows - right + 1, _ERROR), 0.0)
    return bound


def measure(points: Sequence[float], validation: Answered, test: Answered) -> tuple[OperatingPoint, ...]:
    """Choose each point's threshold on validation rows, and measure it on test rows.

    Thresholds are tested in a fixed order, from the strictest down, and the last one before the first that fails is
    chosen: one passes where the lower bound of its accuracy reaches the point. So the promise holds with a probability
    of 90 %, however many are tested (fixed-sequence testing). The order depends on confidences, not on which answers
    are right: thresholds answer 2 %, 4 %, ... of the rows, of which the first has at least 15 %, and so many rows that
    the point could be shown if all answers were right. On fewer, one wrong answer would end the search.
    """
    order = np.argsort(-validation[0], kind="stable")
    ranked, right, total = validation[0][order], np.cumsum(validation[1][order]), len(order)
    ranks = np.ceil(total * np.arange(1, _STEPS + 1) / _STEPS).astype(np.int64)
    # Of each threshold, the rows that it answers: equal confidences are answered together.
    counts = np.unique(np.searchsorted(-ranked, -ranked[ranks - 1], side="right"))
    found = list[OperatingPoint]()
    for point in points:
        tested = counts[counts >= max(np.log(_ERROR) / np.log(point), _STRICTEST * total)]
        passed = lower_bound(right[tested - 1], tested) >= point
        num_passed = int(np.argmin([*passed, False]))
        if not num_passed:
            # What as many times the rows would show, if each threshold kept its share and its accuracy.
            more, few = np.meshgrid(_MOST, counts)
            enough = more[lower_bound(more * right[few - 1], more * few) >= point]
            needed = None if not len(enough) else int(np.ceil(total * enough.min() / 100) * 100)
            found.append(OperatingPoint(point, None, total, rows_needed=needed))
            continue
        threshold = float(ranked[tested[num_passed - 1] - 1])
        answered = test[0] >= threshold
        num_answered, num_right = int(answered.sum()), int(test[1][answered].sum())
        coverage = round(num_answered / len(answered), 6), _interval(num_answered, len(answered))
        accuracy = (
            (round(num_right / num_answered, 6), _interval(num_right, num_answered)) if num_answered else (None, None)
        )
        found.append(OperatingPoint(point, threshold, total, *coverage, *accuracy))
    return tuple(found)


def _interval(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, by Clopper and Pearson."""
    from scipy.stats import binomtest

    low, high = binomtest(count, total).proportion_ci(0.95)
    return round(float(low), 6), round(float(high), 6)


# ---- calibration -----------------------------------------------------------------------------------------------------
def reliability(rows: Answered) -> list[tuple[float, float, int]]:
    """Return mean confidence, accuracy and number of rows of `NUM_BINS` bins of equally many rows, least sure first."""
    bins = np.array_split(np.argsort(rows[0], kind="stable"), min(NUM_BINS, len(rows[0])))
    return [(float(rows[0][own].mean()), float(rows[1][own].mean()), len(own)) for own in bins]


def calibration_error(rows: Answered) -> float:
    """Return the expected calibration error: how far confidence and accuracy are apart in a bin of `reliability`."""
    bins = reliability(rows)
    return sum(abs(confidence - accuracy) * count for confidence, accuracy, count in bins) / len(rows[0])


# ---- answers and words -----------------------------------------------------------------------------------------------
def with_points(predictions: Sequence[Prediction], points: Sequence[OperatingPoint]) -> list[Prediction]:
    """Return predictions that say at which of an adapter's points they are sure."""
    held = {each.point: each.threshold for each in points if each.threshold is not None}
    if not held:
        return list(predictions)
    return [
        replace(it, sure_at={point: it.score is not None and it.score >= own for point, own in held.items()})
        for it in predictions
    ]


def check_point(point: float, points: Sequence[OperatingPoint], task: str) -> None:
    """Refuse an operating point that an adapter of a task has no threshold for.

    Raises:
        UsageError: it has none; the message lists those that it has.
    """
    held = [each.point for each in points if each.threshold is not None]
    if point not in held:
        none = next((f" ({each})" for each in points if each.point == point), "")
        known = ", ".join(f"{each:g}" for each in held) or "none"
        raise UsageError(
            f"An operating point must have a threshold (those of {task}: {known}), but got {point:g}{none}.",
            hint="`task.operating_points` of the space names those that a search chooses thresholds for",
        )
