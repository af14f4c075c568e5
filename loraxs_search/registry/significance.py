"""Whether one adapter is better than another on the same test rows, or by chance: answers in, a probability out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loraxs_search.registry.test_predictions import ScoredRows
from loraxs_search.tasks.kinds import Metric, find_metric

NUM_RESAMPLES = 2000
_BEYOND = 20  # resamples that make up a chance equal to the level: with fewer it could not be told from zero
_CHUNK_BYTES = 16 * 2**20
_SEED = 0

Numbers = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def p_value(metric: str, sign: float, first: ScoredRows, second: ScoredRows, level: float = 0.05) -> float | None:
    """Return the chance of seeing `first` ahead by this much if it were no better; None where rows cannot tell.

    Shares of right answers, such as accuracy: the exact one-sided McNemar test. Others: a paired bootstrap over rows;
    the share of resamples in which `first` is not ahead. The same rows give the same number, on every machine.

    What is a mean over tokens, such as the loss, can only be compared where both have as many in each row.

    Args:
        sign: 1 when more is better, -1 when less is.
        level: The chance that the result is compared with: a small one needs more resamples.
    """
    known = find_metric(metric)
    if known is None or not first.same_rows(second) or not len(first.labels):
        return None
    if known.column != "predictions" and not _have_tokens(known, first, second):
        return None
    if known.is_share:
        return _mcnemar(first, second)
    num_resamples = max(NUM_RESAMPLES, math.ceil(_BEYOND / level))
    gains = sign * _resampled_gains(known, first, second, num_resamples)
    return float((1 + np.count_nonzero(gains <= 0)) / (1 + len(gains)))


def score_of(metric: Metric, rows: ScoredRows) -> float | None:
    """Return a metric of rows; None where they lack what it is taken of."""
    values = rows.column(metric.column)
    against = rows.labels if metric.column == "predictions" else rows.counts
    return None if values is None or against is None or not len(values) else metric.score(values, against)


def _have_tokens(metric: Metric, first: ScoredRows, second: ScoredRows) -> bool:
    both = (first.column(metric.column), second.column(metric.column))
    return first.same_tokens(second) and all(values is not None for values in both)


def _mcnemar(first: ScoredRows, second: ScoredRows) -> float:
    from scipy.stats import binomtest

    first_right, second_right = first.predictions == first.labels, second.predictions == second.labels
    won, lost = int(np.count_nonzero(first_right & ~second_right)), int(np.count_nonzero(~first_right & second_right))
    return float(binomtest(won, won + lost, alternative="greater").pvalue) if won + lost else 1.0


def _resampled_gains(metric: Metric, first: ScoredRows, second: ScoredRows, num_resamples: int) -> Numbers:
    random = np.random.default_rng(_SEED)
    if metric.column != "predictions":
        assert first.counts is not None  # `p_value` has seen to it
        sums, others = (np.asarray(rows.column(metric.column), np.float64) for rows in (first, second))
        return _gains_of_sums(sums, others, first.counts.astype(np.float64), random, num_resamples)
    if metric.of_rows is not None:
        scores, others = (metric.of_rows(rows.predictions, rows.labels) for rows in (first, second))
        return _gains_of_sums(scores, others, np.ones(len(first.labels)), random, num_resamples)
    if metric.name in OF_COUNTS and first.labels.dtype.kind == "i":
        return _gains_of_counts(OF_COUNTS[metric.name], first, second, random, num_resamples)
    if metric.name in OF_NUMBERS and first.labels.dtype.kind == "f":
        return _gains_of_numbers(OF_NUMBERS[metric.name], first, second, random, num_resamples)
    score, size, labels = metric.score, len(first.labels), first.labels
    gains = []
    for _ in range(num_resamples):
        rows = random.integers(size, size=size)
        gains.append(score(first.predictions[rows], labels[rows]) - score(second.predictions[rows], labels[rows]))
    return np.array(gains)


# ---- sums over rows, of many resamples at once -----------------------------------------------------------------------
def _gains_of_sums(
    first: Numbers, second: Numbers, counts: Numbers, random: np.random.Generator, num_resamples: int
) -> Numbers:
    """Resample what each row adds, (N,), to a sum that is divided by the sum of `counts`, (N,)."""
    gains, share = [], np.full(len(counts), 1 / len(counts))
    for size in _chunks(num_resamples, len(counts)):
        drawn = random.multinomial(len(counts), share, size=size).astype(np.float64)  # how often each row is drawn
        gains.append(_ratio(drawn @ first - drawn @ second, drawn @ counts))
    return np.concatenate(gains)


# ---- metrics of classes, of many resamples at once -------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Counts:
    """How often each label is true, answered, and both; each of shape (resamples, labels)."""

    true: Numbers
    answered: Numbers
    hits: Numbers


def _gains_of_counts(
    score: Callable[[Counts], Numbers],
    first: ScoredRows,
    second: ScoredRows,
    random: np.random.Generator,
    num_resamples: int,
) -> Numbers:
    """Resample all rows at once: how often each (label, first answer, second answer) is drawn is multinomial.

    Only combinations that occur take part, at most one a row, and resamples are drawn in chunks: memory grows with
    neither the number of labels nor that of resamples.
    """
    triples = np.stack([first.labels, first.predictions, second.predictions])
    cells, counts = np.unique(triples, axis=1, return_counts=True)  # (3, cells)
    labels, first_answers, second_answers = cells
    n, gains = 1 + int(cells.max()), []
    for size in _chunks(num_resamples, max(len(counts), n)):
        drawn = random.multinomial(counts.sum(), counts / counts.sum(), size=size).astype(np.float64)
        true = _summed(drawn, labels, n)
        first_scores, second_scores = (
            score(
                Counts(
                    true,
                    _summed(drawn, answered, n),
                    _summed(drawn[:, answered == labels], labels[answered == labels], n),
                )
            )
            for answered in (first_answers, second_answers)
        )
        gains.append(first_scores - second_scores)
    return np.concatenate(gains)


def _chunks(total: int, width: int) -> Iterator[int]:
    size = max(1, _CHUNK_BYTES // (8 * width))
    for start in range(0, total, size):
        yield min(size, total - start)


def _summed(drawn: Numbers, ids: Ids, n: int) -> Numbers:
    """Return the sum of `drawn`, shape (resamples, cells), over the cells of each id, shape (resamples, n)."""
    sums = np.zeros((len(drawn), n))
    if len(ids):
        order = np.argsort(ids, kind="stable")
        present, starts = np.unique(ids[order], return_index=True)
        sums[:, present] = np.add.reduceat(drawn[:, order], starts, axis=1)
    return sums


def _ratio(top: Numbers, bottom: Numbers) -> Numbers:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _f1_per_label(counts: Counts) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """F1 of each label, and whether it occurs at all."""
    seen = counts.true + counts.answered
    return _ratio(2 * counts.hits, seen), seen > 0


def _f1(counts: Counts) -> Numbers:
    scores = _f1_per_label(counts)[0]
    return scores[:, 1] if scores.shape[1] > 1 else np.zeros(len(scores))


def _macro_f1(counts: Counts) -> Numbers:
    scores, occurs = _f1_per_label(counts)
    return _ratio((scores * occurs).sum(1), occurs.sum(1).astype(np.float64))


def _matthews(counts: Counts) -> Numbers:
    true, answered, size = counts.true, counts.answered, counts.true.sum(1)
    top = counts.hits.sum(1) * size - (true * answered).sum(1)
    bottom = np.sqrt((size**2 - (answered**2).sum(1)) * (size**2 - (true**2).sum(1)))
    return _ratio(top, bottom)


OF_COUNTS: dict[str, Callable[[Counts], Numbers]] = {"f1": _f1, "macro_f1": _macro_f1, "matthews": _matthews}


# ---- metrics of numbers, of many resamples at once -------------------------------------------------------------------
def _gains_of_numbers(
    score: Callable[[Numbers, Numbers], Numbers],
    first: ScoredRows,
    second: ScoredRows,
    random: np.random.Generator,
    num_resamples: int,
) -> Numbers:
    """Resample rows in chunks: the same rows as if they were drawn one resample after another, scored in float64."""
    first_answers, second_answers, labels = (
        x.astype(np.float64) for x in (first.predictions, second.predictions, first.labels)
    )
    gains = []
    for size in _chunks(num_resamples, len(labels)):
        rows = random.integers(len(labels), size=(size, len(labels)))
        true = labels[rows]
        gains.append(score(first_answers[rows], true) - score(second_answers[rows], true))
    return np.concatenate(gains)


def _pearson(answered: Numbers, true: Numbers) -> Numbers:
    """Return the correlation of each row of two arrays of shape (resamples, N); 0 where one of them is constant."""
    answered_apart, true_apart = (x - x.mean(1, keepdims=True) for x in (answered, true))
    top = np.einsum("rn,rn->r", answered_apart, true_apart)
    bottom = _length(answered_apart, answered) * _length(true_apart, true)
    return _ratio(top, bottom)


def _length(apart: Numbers, values: Numbers) -> Numbers:
    """Return the norm of each row's distances from its mean; 0 where they are float64's rounding."""
    constant = np.abs(apart).max(1) <= 1e-12 * np.abs(values).max(1)
    return np.where(constant, 0.0, np.sqrt(np.einsum("rn,rn->r", apart, apart)))


def _mse(answered: Numbers, true: Numbers) -> Numbers:
    return np.asarray(((answered - true) ** 2).mean(1))


OF_NUMBERS: dict[str, Callable[[Numbers, Numbers], Numbers]] = {"pearson": _pearson, "mse": _mse}
