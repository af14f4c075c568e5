"""How an answer is scored: the metric table. Importing it is light; scikit-learn and scipy load at the first score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from loraxs_search.records import Direction

Values = npt.NDArray[np.generic]
Score = Callable[[Values, Values], float]


@dataclass(frozen=True)
class Metric:
    """A metric: which way is better, and its value. A task kind says which ones fit it.

    Args:
        score: (predictions, labels), both of shape (N,), to a finite number.
        is_share: Whether it is the share of rows whose prediction equals the label.
        of_rows: (predictions, labels) to the score of each row, (N,), float64, where the metric is the mean of these;
            then it is resampled at once. None where it is no such mean.
        column: What of `RowScores` stands in place of predictions: `losses` and `correct` are scored against `counts`
            in place of labels, and need no answers.
    """

    name: str
    direction: Direction
    score: Score
    is_share: bool = False
    column: Literal["predictions", "losses", "correct"] = "predictions"
    of_rows: Callable[[Values, Values], npt.NDArray[np.float64]] | None = None


def _accuracy(predictions: Values, labels: Values) -> float:
    return float(np.mean(predictions == labels))


def _f1(predictions: Values, labels: Values) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0.0))


def _macro_f1(predictions: Values, labels: Values) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _matthews(predictions: Values, labels: Values) -> float:
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if _constant(predictions) or _constant(labels) else float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: Values, labels: Values) -> float:
    from scipy.stats import pearsonr

    if _constant(predictions) or _constant(labels):
        return 0.0
    return float(pearsonr(predictions.astype(np.float64), labels.astype(np.float64)).statistic)


def _spearman(predictions: Values, labels: Values) -> float:
    from scipy.stats import spearmanr

    return 0.0 if _constant(predictions) or _constant(labels) else float(spearmanr(predictions, labels).statistic)


def _mse(predictions: Values, labels: Values) -> float:
    return float(np.square(predictions.astype(np.float64) - labels.astype(np.float64)).mean())


def _ratio(sums: Values, counts: Values) -> float:
    return float(np.sum(sums, dtype=np.float64) / np.sum(counts))


def _constant(values: Values) -> bool:
    """Say whether all values are the same, up to their own resolution: no correlation is defined then."""
    rounding = 4 * float(np.finfo(np.float32).eps) if values.dtype == np.float32 else 0.0
    numbers = values.astype(np.float64)
    spread = np.abs(numbers - numbers.mean()).max()
    return bool(spread <= max(1e-12, rounding) * np.abs(numbers).max())


# Where a metric is undefined its value here is: f1 0 without true or predicted positives; matthews, pearson and
# spearman 0 when the predictions or the labels are all the same.
CLASS_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "maximize", _accuracy, is_share=True),
        Metric("f1", "maximize", _f1),
        Metric("macro_f1", "maximize", _macro_f1),
        Metric("matthews", "maximize", _matthews),
    )
}
NUMBER_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("pearson", "maximize", _pearson),
        Metric("spearman", "maximize", _spearman),
        Metric("mse", "minimize", _mse),
    )
}
TOKEN_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("loss", "minimize", _ratio, column="losses"),
        Metric("token_accuracy", "maximize", _ratio, column="correct"),
    )
}
METRICS = CLASS_METRICS | NUMBER_METRICS
