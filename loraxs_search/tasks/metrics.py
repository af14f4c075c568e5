"""How an answer is scored: the metric table. Importing it is light; scikit-learn and scipy load at the first score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import unknown_name
from loraxs_search.records import Direction, TaskKind

Values = npt.NDArray[np.generic]
Score = Callable[[Values, Values], float]


@dataclass(frozen=True)
class Metric:
    """A metric: which way is better, what it fits, and its value.

    Args:
        kinds: Task kinds whose predictions it can score.
        num_labels: The one number of labels that it fits; None means any.
        score: (predictions, labels), both of shape (N,), to a finite number.
    """

    name: str
    direction: Direction
    kinds: tuple[TaskKind, ...]
    score: Score
    num_labels: int | None = None


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

    return 0.0 if _constant(predictions) or _constant(labels) else float(pearsonr(predictions, labels).statistic)


def _spearman(predictions: Values, labels: Values) -> float:
    from scipy.stats import spearmanr

    return 0.0 if _constant(predictions) or _constant(labels) else float(spearmanr(predictions, labels).statistic)


def _mse(predictions: Values, labels: Values) -> float:
    from sklearn.metrics import mean_squared_error

    return float(mean_squared_error(labels, predictions))


def _constant(values: Values) -> bool:
    """Say whether all values are the same, up to float64's resolution: no correlation is defined then."""
    numbers = values.astype(np.float64)
    spread = np.abs(numbers - numbers.mean()).max()
    return bool(spread <= 1e-12 * np.abs(numbers).max())


_CLASSES: tuple[TaskKind, ...] = ("sequence-classification",)
_NUMBERS: tuple[TaskKind, ...] = ("regression",)

# Where a metric is undefined its value here is: f1 0 without true or predicted positives; matthews, pearson and
# spearman 0 when the predictions or the labels are all the same.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "maximize", _CLASSES, _accuracy),
        Metric("f1", "maximize", _CLASSES, _f1, num_labels=2),
        Metric("macro_f1", "maximize", _CLASSES, _macro_f1),
        Metric("matthews", "maximize", _CLASSES, _matthews),
        Metric("pearson", "maximize", _NUMBERS, _pearson),
        Metric("spearman", "maximize", _NUMBERS, _spearman),
        Metric("mse", "minimize", _NUMBERS, _mse),
    )
}


def metric_fault(name: str, kind: TaskKind, num_labels: int) -> str | None:
    """Say why a metric cannot score such a task, as a whole sentence; None when it can."""
    metric = METRICS.get(name)
    fitting = [m.name for m in METRICS.values() if kind in m.kinds and m.num_labels in (None, num_labels)]
    if metric is None:
        return unknown_name("metric", name, fitting)
    if kind not in metric.kinds:
        return f"`{name}` scores {' and '.join(metric.kinds)}, but the task's kind is {kind}; use {_any_of(fitting)}."
    if metric.num_labels not in (None, num_labels):
        return f"`{name}` scores {metric.num_labels} labels, but the task has {num_labels}; use {_any_of(fitting)}."
    return None


def _any_of(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
