"""Whether one adapter is better than another on the same test rows, or by chance: answers in, a probability out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loraxs_search.registry.scored_rows import ScoredRows, Values
from loraxs_search.tasks.kinds import Metric, find_metric
from loraxs_search.tasks.metrics import ratio_or_zero

MIN_ROWS = 10  # fewer test rows decide nothing
NUM_RESAMPLES = 2000
_EXACT = 11  # rows that differ: 2^11 exchanges are all there are, and about as many as are drawn
_BEYOND, _MANY = 20, 200_000  # exchanges that make up a chance equal to the level: with fewer it could look like zero
_CHUNK_BYTES = 16 * 2**20
_SEED = 0

Numbers = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def p_value(
    metric: str | Metric, sign: float, first: ScoredRows, second: ScoredRows, level: float = 0.05
) -> float | None:
    """Return the chance of seeing `first` ahead by this much if it were no better; None if rows cannot tell.

    Shares of right answers, such as accuracy: the exact one-sided McNemar test. Others: a paired permutation test. If
    neither is better, it is chance which of the two gave which answer to a row. So the two answers to each row are
    exchanged or left, and the result is the share of exchanges in which `first` is ahead by as much: of all exchanges
    where few rows differ, of a sample elsewhere. The same rows give the same number, on every machine.

    What is a mean over tokens, such as the loss, can only be compared where both have as many in each row.

    Args:
        metric: As the kind of the task has it, or the name of one that only one kind has.
        sign: 1 when more is better, -1 when less is.
        level: The chance that the result is compared with: a small one needs more exchanges.
    """
    known = metric if isinstance(metric, Metric) else find_metric(metric)
    if known is None or not first.same_rows(second) or not len(first.labels):
        return None
    columns = [rows.column(known.column) for rows in (first, second)]
    if known.column != "predictions" and (not first.same_tokens(second) or any(it is None for it in columns)):
        return None
    if known.is_share:
        return _mcnemar(first, second)
    pairs = _pairs(known, first, second)
    if int(pairs.counts[pairs.differ].sum()) <= _EXACT:
        ahead, drawn = _count_ahead(pairs, sign, _all_exchanges(pairs))
        return ahead / drawn
    total = max(NUM_RESAMPLES, math.ceil(min(_BEYOND / level, max(_MANY, 2 / level))))
    ahead, drawn = _count_ahead(pairs, sign, _drawn_exchanges(pairs, total), enough=level * total)
    return (1 + ahead) / (1 + drawn)


def _mcnemar(first: ScoredRows, second: ScoredRows) -> float:
    from scipy.stats import binomtest

    first_right, second_right = first.predictions == first.labels, second.predictions == second.labels
    won, lost = int(np.count_nonzero(first_right & ~second_right)), int(np.count_nonzero(~first_right & second_right))
    return float(binomtest(won, won + lost, alternative="greater").pvalue) if won + lost else 1.0


# ---- exchanges of two answers ----------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Pairs:
    """Two answers to each row; rows that are answered alike may be one item.

    Args:
        counts: How many rows each item stands for, (items,).
        differ: Whether its two answers differ, (items,).
        gains: What `first` gains where so many rows of each item are exchanged, (exchanges, items) to (exchanges,).
        width: Numbers that an exchange takes.
    """

    counts: Ids
    differ: npt.NDArray[np.bool_]
    gains: Callable[[Numbers], Numbers]
    width: int


def _count_ahead(pairs: _Pairs, sign: float, exchanges: Iterator[Numbers], enough: float = math.inf) -> tuple[int, int]:
    """Return how many exchanges put `first` ahead by as much as it is, of how many.

    Args:
        enough: With more of them than this, more exchanges would not change what is decided.
    """
    observed, ahead, drawn = sign * float(pairs.gains(np.zeros((1, len(pairs.counts))))[0]), 0, 0
    for exchanged in exchanges:
        gains = sign * pairs.gains(exchanged)
        rounding = 1e-9 * max(abs(observed), float(np.abs(gains).max()))
        ahead += int(np.count_nonzero(gains >= observed - rounding))
        drawn += len(exchanged)
        if ahead > enough and drawn >= NUM_RESAMPLES:
            break
    return ahead, drawn


def _all_exchanges(pairs: _Pairs) -> Iterator[Numbers]:
    places = np.flatnonzero(pairs.differ)
    for numbers in _chunks(2 ** len(places), pairs.width):
        exchanged = np.zeros((len(numbers), len(pairs.counts)))
        exchanged[:, places] = numbers[:, None] >> np.arange(len(places)) & 1
        yield exchanged


def _drawn_exchanges(pairs: _Pairs, total: int) -> Iterator[Numbers]:
    random, is_single = np.random.default_rng(_SEED), bool((pairs.counts == 1).all())
    for numbers in _chunks(total, pairs.width):
        shape = (len(numbers), len(pairs.counts))
        drawn = random.integers(0, 2, shape, np.int8) if is_single else random.binomial(pairs.counts, 0.5, shape)
        yield drawn.astype(np.float64)


def _chunks(total: int, width: int) -> Iterator[Ids]:
    size = max(1, _CHUNK_BYTES // (8 * max(1, width)))
    for start in range(0, total, size):
        yield np.arange(start, min(start + size, total))


def _pairs(metric: Metric, first: ScoredRows, second: ScoredRows) -> _Pairs:
    labels = first.labels
    if metric.column != "predictions":
        assert first.counts is not None  # `p_value` has seen to it
        sums, others = (np.asarray(rows.column(metric.column), np.float64) for rows in (first, second))
        return _pairs_of_sums(sums - others, float(first.counts.sum()))
    if metric.of_rows is not None:
        scores, others = (metric.of_rows(rows.predictions, labels) for rows in (first, second))
        return _pairs_of_sums(scores - others, float(len(labels)))
    if metric.row_counts is not None and metric.of_counts is not None:
        counts = (metric.row_counts(rows.predictions, labels) for rows in (first, second))
        return _pairs_of_row_counts(metric.of_counts, *counts)
    if metric.name in OF_COUNTS and labels.dtype.kind == "i":
        return _pairs_of_ids(OF_COUNTS[metric.name], first, second)
    score, answers = _one_by_one(metric), (first.predictions, second.predictions)
    if metric.name in OF_NUMBERS and labels.dtype.kind == "f":
        score, answers = OF_NUMBERS[metric.name], (answers[0].astype(np.float64), answers[1].astype(np.float64))
        labels = labels.astype(np.float64)

    def gains(exchanged: Numbers) -> Numbers:
        is_first, true = exchanged == 0, np.broadcast_to(labels, exchanged.shape)
        return score(np.where(is_first, *answers), true) - score(np.where(is_first, *answers[::-1]), true)

    return _Pairs(np.ones(len(labels), np.int64), answers[0] != answers[1], gains, len(labels))


def _pairs_of_sums(differences: Numbers, total: float) -> _Pairs:
    """Pair what rows add, (N,), to a sum that is divided by `total`."""
    differences = differences[differences != 0]
    counts = np.ones(len(differences), np.int64)
    return _Pairs(counts, counts > 0, lambda e: (1 - 2 * e) @ differences / (total or 1.0), len(differences))


def _pairs_of_row_counts(of_counts: Callable[[Numbers], Numbers], first: Numbers, second: Numbers) -> _Pairs:
    """Pair what rows add, (N, k), to the sums that a metric follows from."""
    sums, others = first.sum(0), second.sum(0)
    differences = (second - first)[(first != second).any(1)]
    counts = np.ones(len(differences), np.int64)

    def gains(exchanged: Numbers) -> Numbers:
        moved = exchanged @ differences  # (exchanges, k)
        return of_counts(sums + moved) - of_counts(others - moved)

    return _Pairs(counts, counts > 0, gains, max(1, len(differences)))


def _one_by_one(metric: Metric) -> Callable[[Values, Values], Numbers]:
    return lambda answered, true: np.array([metric.score(*both) for both in zip(answered, true, strict=True)])


# ---- metrics of classes, of many exchanges at once -------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Counts:
    """How often each label is true, answered, and both; each of shape (exchanges, labels), `true` maybe (1, labels)."""

    true: Numbers
    answered: Numbers
    hits: Numbers


def _pairs_of_ids(score: Callable[[Counts], Numbers], first: ScoredRows, second: ScoredRows) -> _Pairs:
    """Pair label ids: rows with the same label and the same two answers are one item, unless few rows differ."""
    triples, counts = np.stack([first.labels, first.predictions, second.predictions]), np.ones(len(first.labels), int)
    if np.count_nonzero(triples[1] != triples[2]) > _EXACT:
        triples, counts = np.unique(triples, axis=1, return_counts=True)  # (3, items)
    labels, *answers = triples
    n = 1 + int(triples.max())
    true = _summed(counts[None].astype(np.float64), labels, n)

    def hits(rows_of: Numbers, answered: Ids) -> Numbers:
        return _summed(rows_of[:, answered == labels], labels[answered == labels], n)

    def scored(own: tuple[Numbers, Ids], other: tuple[Numbers, Ids]) -> Numbers:
        return score(Counts(true, _summed(*own, n) + _summed(*other, n), hits(*own) + hits(*other)))

    def gains(exchanged: Numbers) -> Numbers:
        left, (one, two) = counts - exchanged, answers
        return scored((left, one), (exchanged, two)) - scored((left, two), (exchanged, one))

    return _Pairs(counts, answers[0] != answers[1], gains, max(len(counts), n))


def _summed(rows_of: Numbers, ids: Ids, n: int) -> Numbers:
    """Return the sum of `rows_of`, shape (exchanges, items), over the items of each id, shape (exchanges, n)."""
    sums = np.zeros((len(rows_of), n))
    if len(ids):
        order = np.argsort(ids, kind="stable")
        present, starts = np.unique(ids[order], return_index=True)
        sums[:, present] = np.add.reduceat(rows_of[:, order], starts, axis=1)
    return sums


def _f1_per_label(counts: Counts) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """F1 of each label, and whether it occurs at all."""
    seen = counts.true + counts.answered
    return ratio_or_zero(2 * counts.hits, seen), seen > 0


def _f1(counts: Counts) -> Numbers:
    scores = _f1_per_label(counts)[0]
    return scores[:, 1] if scores.shape[1] > 1 else np.zeros(len(scores))


def _macro_f1(counts: Counts) -> Numbers:
    scores, occurs = _f1_per_label(counts)
    return ratio_or_zero((scores * occurs).sum(1), occurs.sum(1).astype(np.float64))


def _matthews(counts: Counts) -> Numbers:
    true, answered, size = counts.true, counts.answered, counts.true.sum(1)
    top = counts.hits.sum(1) * size - (true * answered).sum(1)
    bottom = np.sqrt((size**2 - (answered**2).sum(1)) * (size**2 - (true**2).sum(1)))
    return ratio_or_zero(top, bottom)


OF_COUNTS: dict[str, Callable[[Counts], Numbers]] = {"f1": _f1, "macro_f1": _macro_f1, "matthews": _matthews}


# ---- metrics of numbers, of many exchanges at once -------------------------------------------------------------------
def _pearson(answered: Numbers, true: Numbers) -> Numbers:
    """Return the correlation of each row of two arrays of shape (exchanges, N); 0 where one of them is constant."""
    answered_apart, true_apart = (x - x.mean(1, keepdims=True) for x in (answered, true))
    top = np.einsum("rn,rn->r", answered_apart, true_apart)
    bottom = _length(answered_apart, answered) * _length(true_apart, true)
    return ratio_or_zero(top, bottom)


def _length(apart: Numbers, values: Numbers) -> Numbers:
    """Return the norm of each row's distances from its mean; 0 where they are float64's rounding."""
    constant = np.abs(apart).max(1) <= 1e-12 * np.abs(values).max(1)
    return np.where(constant, 0.0, np.sqrt(np.einsum("rn,rn->r", apart, apart)))


def _spearman(answered: Numbers, true: Numbers) -> Numbers:
    """Return what `_pearson` does, of ranks; `true` is the same in each exchange."""
    from scipy.stats import rankdata

    return _pearson(rankdata(answered, axis=1), rankdata(true[:1], axis=1))


OF_NUMBERS: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "mse": lambda answered, true: np.asarray(((answered - true) ** 2).mean(1)),
}
