"""Is one adapter better than another on the same test rows, or is it luck? Pure: answers in, a probability out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from loraxs_search.registry.rows import ScoredRows, Values
from loraxs_search.tasks.metrics import METRICS

NUM_RESAMPLES = 2000
_SEED = 0

Table = npt.NDArray[np.float64]  # (resamples, labels, predictions): how often each pair occurs


def p_value(metric: str, sign: float, ours: ScoredRows, theirs: ScoredRows) -> float | None:
    """Return the chance of seeing `ours` ahead by this much if it were no better; None where rows cannot tell.

    Accuracy: the exact one-sided McNemar test. Others: a paired bootstrap over rows; the share of resamples in which
    `ours` is not ahead. The same rows give the same number, on every machine.

    Args:
        sign: 1 when more is better, -1 when less is.
    """
    if metric not in METRICS or not ours.same_rows(theirs) or not len(ours.labels):
        return None
    if metric == "accuracy":
        return _mcnemar(ours, theirs)
    gains = sign * _resampled_gains(metric, ours, theirs)
    return float((1 + np.count_nonzero(gains <= 0)) / (1 + len(gains)))


def _mcnemar(ours: ScoredRows, theirs: ScoredRows) -> float:
    from scipy.stats import binomtest

    right, other_right = ours.predictions == ours.labels, theirs.predictions == theirs.labels
    won, lost = int(np.count_nonzero(right & ~other_right)), int(np.count_nonzero(~right & other_right))
    return float(binomtest(won, won + lost, alternative="greater").pvalue) if won + lost else 1.0


def _resampled_gains(metric: str, ours: ScoredRows, theirs: ScoredRows) -> Table:
    random = np.random.default_rng(_SEED)
    if metric in _OF_TABLES:
        return _gains_of_tables(_OF_TABLES[metric], ours, theirs, random)
    score, size, labels = METRICS[metric].score, len(ours.labels), ours.labels
    gains = []
    for _ in range(NUM_RESAMPLES):
        rows = random.integers(size, size=size)
        gains.append(score(ours.predictions[rows], labels[rows]) - score(theirs.predictions[rows], labels[rows]))
    return np.array(gains)


def _gains_of_tables(
    score: Callable[[Table], Table], ours: ScoredRows, theirs: ScoredRows, random: np.random.Generator
) -> Table:
    """Resample all rows at once: how often each (label, our answer, their answer) is drawn is multinomial."""
    n = 1 + int(max(rows.max(initial=0) for rows in (ours.labels, ours.predictions, theirs.predictions)))
    cells = np.ravel_multi_index((ours.labels, ours.predictions, theirs.predictions), (n, n, n))
    counts = np.bincount(cells, minlength=n**3)
    drawn = random.multinomial(counts.sum(), counts / counts.sum(), size=NUM_RESAMPLES).reshape(-1, n, n, n)
    return score(drawn.sum(3).astype(np.float64)) - score(drawn.sum(2).astype(np.float64))


def _ratio(top: Table, bottom: Table) -> Table:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _f1_per_label(table: Table) -> tuple[Table, npt.NDArray[np.bool_]]:
    """F1 of each label, and whether it occurs at all."""
    hits = np.diagonal(table, axis1=1, axis2=2)
    seen = table.sum(2) + table.sum(1)
    return _ratio(2 * hits, seen), seen > 0


def _f1(table: Table) -> Table:
    return _f1_per_label(table)[0][:, 1]


def _macro_f1(table: Table) -> Table:
    scores, occurs = _f1_per_label(table)
    return _ratio((scores * occurs).sum(1), occurs.sum(1).astype(np.float64))


def _matthews(table: Table) -> Table:
    size, hits = table.sum((1, 2)), np.trace(table, axis1=1, axis2=2)
    true, said = table.sum(2), table.sum(1)
    top = hits * size - (true * said).sum(1)
    bottom = np.sqrt((size**2 - (said**2).sum(1)) * (size**2 - (true**2).sum(1)))
    return _ratio(top, bottom)


_OF_TABLES: dict[str, Callable[[Table], Table]] = {"f1": _f1, "macro_f1": _macro_f1, "matthews": _matthews}


def table_score(metric: str, predictions: Values, labels: Values) -> float:
    """Return a metric of classes as the resamples compute it; equal to the metric table's own."""
    n = 1 + int(max(predictions.max(initial=1), labels.max(initial=1)))
    table = np.zeros((1, n, n))
    np.add.at(table[0], (labels, predictions), 1.0)
    return float(_OF_TABLES[metric](table)[0])
