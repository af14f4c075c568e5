"""Whether one adapter is better than another on the same test rows, or by chance, and how much worse it may be.

Answers in, numbers out; the same rows give the same numbers, on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loraxs_search.registry.scored_rows import ScoredRows, Values, score_of
from loraxs_search.tasks.kinds import Metric, find_metric
from loraxs_search.tasks.metrics import ratio_or_zero

MIN_ROWS = 10  # fewer test rows decide nothing
MAX_DRAWS = 10_000  # exchanges; each is drawn with its reverse, which turns the gain round
_EXACT = 11  # rows that differ: 2^11 exchanges are all there are
_FEW, _NO_CHANCE = 20, 0.1  # exchanges ahead that can be counted on; a share of them that no comparison is held to
_RESAMPLES, _RESAMPLED = 1000, 40_000_000  # draws of all rows, and rows drawn in all
_CHUNK_BYTES = 16 * 2**20
_SEED = 0

Numbers = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def p_value(metric: str | Metric, sign: float, first: ScoredRows, second: ScoredRows) -> float | None:
    """Return the chance of seeing `first` ahead by this much if it were no better; None if rows cannot tell.

    Shares of right answers, such as accuracy: the exact one-sided McNemar test. Others: a paired permutation test. If
    neither is better, it is chance which of the two gave which answer to a row. So the two answers to each row are
    exchanged or left, and the result is the share of exchanges in which `first` is ahead by as much: of all exchanges
    where few rows differ, else of at most `MAX_DRAWS`. Where fewer than twenty of them are ahead, it is the tail of the
    normal distribution with their deviation, unless more of them lie beyond two or three deviations than it has there.

    What is a mean over tokens, such as the loss, can only be compared where both have as many in each row.

    Args:
        metric: As the kind of the task has it, or the name of one that only one kind has.
        sign: 1 when more is better, -1 when less is.
    """
    known = _comparable(metric, first, second)
    if known is None:
        return None
    if known.is_share:
        from scipy.stats import binomtest

        won, lost = _won_and_lost(first, second)
        return float(binomtest(won, won + lost, alternative="greater").pvalue) if won + lost else 1.0
    pairs = _pairs(known, first, second)
    observed = sign * float(pairs.gains(np.zeros((1, len(pairs.counts))))[0])
    if int(pairs.counts[pairs.differ].sum()) <= _EXACT:
        gains = np.concatenate([sign * pairs.gains(exchanged) for exchanged in _all_exchanges(pairs)])
        return _num_ahead(gains, observed) / len(gains)
    drawn, ahead = list[Numbers](), 0
    for exchanged in _drawn_exchanges(pairs, MAX_DRAWS // 2):
        gains = pairs.gains(exchanged)
        drawn.append(np.concatenate([gains, -gains]))
        ahead += _num_ahead(drawn[-1], observed)
        if ahead > max(_FEW, _NO_CHANCE * sum(map(len, drawn))):
            break
    gains = np.concatenate(drawn)
    deviation = float(np.sqrt(np.mean(gains**2)))
    if ahead < _FEW and _has_normal_tail(gains / deviation):
        return normal_tail(observed / deviation)
    return (1 + ahead) / (1 + len(gains))


def loss_bound(metric: str | Metric, sign: float, first: ScoredRows, second: ScoredRows, level: float) -> float | None:
    """Return what `first` is less worse than `second` by, at a chance of error of `level`; None if rows cannot tell.

    It is the smallest margin for which "worse by this margin or more" is rejected. Shares of right answers: Tango's
    score test for paired proportions (Statistics in Medicine 17, 1998). Others: the deviation of a paired bootstrap of
    the rows, and as Tango's what losses that these rows do not have would add to it: few or none may be luck.
    """
    known = _comparable(metric, first, second)
    if known is None:
        return None
    if known.is_share:
        won, lost = _won_and_lost(first, second)
        low, high = 0.0, 1.0
        for _ in range(40):  # the chance falls as the margin grows
            middle = (low + high) / 2
            low, high = (low, middle) if tango(won, lost, len(first.labels), middle) <= level else (middle, high)
        return high
    from scipy.stats import norm

    gains = _resampled_gains(known, first, second)
    scores = score_of(known, first), score_of(known, second)
    if scores[0] is None or scores[1] is None or not np.isfinite(gains).all():
        return None
    n, deviation, z = len(first.labels), float(gains.std()), max(0.0, float(norm.isf(level)))
    num_unlike = np.count_nonzero(first.column(known.column) != second.column(known.column))
    of_row = n * deviation / math.sqrt(num_unlike) if num_unlike else 2.0  # a row is worth, times n; Matthews 2
    # The least d with d = z sqrt(deviation^2 + of_row d / n): if it loses d more, so much more is the variance.
    unseen = of_row * z**2 / n / 2
    return max(0.0, unseen + math.hypot(unseen, z * deviation) - sign * (scores[0] - scores[1]))


def tango(won: int, lost: int, num_rows: int, margin: float) -> float:
    """Return the chance of so few losses if the share of rows that are lost exceeds that of rows won by `margin`.

    Source: Tango (1998), formulas 12 and 13: the variance is that of the likeliest shares that differ by `margin`.
    """
    n, difference = num_rows, -margin
    linear = (won + lost) * (1 - difference) - 2 * difference * (n - won)
    lost_share = (linear + math.sqrt(linear**2 + 8 * n * lost * difference * (1 - difference))) / (4 * n)
    variance = n * (2 * lost_share + difference * (1 - difference))
    ahead = won - lost - n * difference
    return normal_tail(ahead / math.sqrt(variance)) if variance > 0 else float(ahead <= 0)


def normal_tail(z: float) -> float:
    """Return the chance that a standard normal number is `z` or more."""
    return math.erfc(z / math.sqrt(2)) / 2


def _comparable(metric: str | Metric, first: ScoredRows, second: ScoredRows) -> Metric | None:
    """Return the metric by which two answers to the same rows can be compared; None if they cannot."""
    known = metric if isinstance(metric, Metric) else find_metric(metric)
    if known is None or not first.same_rows(second) or not len(first.labels):
        return None
    columns = [rows.column(known.column) for rows in (first, second)]
    if known.column != "predictions" and (not first.same_tokens(second) or any(it is None for it in columns)):
        return None
    return known


def _won_and_lost(first: ScoredRows, second: ScoredRows) -> tuple[int, int]:
    """Return how many rows the first alone answers right, and how many the second alone."""
    first_right, second_right = first.predictions == first.labels, second.predictions == second.labels
    return int(np.count_nonzero(first_right & ~second_right)), int(np.count_nonzero(~first_right & second_right))


def _has_normal_tail(standardised: Numbers) -> bool:
    """Whether no more draws lie beyond two and three deviations than of normal ones, but for chance."""
    for z in (2.0, 3.0):
        expected = len(standardised) * normal_tail(z)
        if np.count_nonzero(standardised >= z) > expected + 4 * math.sqrt(expected):
            return False
    return True


def _resampled_gains(metric: Metric, first: ScoredRows, second: ScoredRows) -> Numbers:
    """Return how far apart both are on rows that are drawn from all rows, with replacement, again and again."""
    random, n = np.random.default_rng(_SEED), len(first.labels)
    num_draws = min(_RESAMPLES, max(100, _RESAMPLED // n))

    def weighted(sums: Callable[[Numbers], Numbers], chances: Numbers) -> Numbers:
        chunks = _chunks(num_draws, len(chances))
        return np.concatenate([sums(random.multinomial(n, chances, len(own)).astype(np.float64)) for own in chunks])

    even = np.full(n, 1 / n)
    if metric.column != "predictions":
        of_first, of_second, counts = (
            np.asarray(x, np.float64) for x in (first.column(metric.column), second.column(metric.column), first.counts)
        )
        return weighted(lambda w: w @ (of_first - of_second) / (w @ counts), even)
    answers = first.predictions, second.predictions
    if (of_rows := metric.of_rows) is not None:
        apart = np.subtract(*(of_rows(said, first.labels) for said in answers))
        return weighted(lambda w: w @ apart / n, even)
    if metric.row_counts is not None and (of_counts := metric.of_counts) is not None:
        own, others = (metric.row_counts(said, first.labels) for said in answers)
        return weighted(lambda w: of_counts(w @ own) - of_counts(w @ others), even)
    if metric.name in OF_COUNTS and first.labels.dtype.kind == "i":
        score, triples = OF_COUNTS[metric.name], np.stack([first.labels, *answers])
        (labels, *said), times = np.unique(triples, axis=1, return_counts=True)
        num_labels = 1 + int(triples.max())

        def of_ids(w: Numbers, own: Ids) -> Numbers:
            hits = _summed(w[:, own == labels], labels[own == labels], num_labels)
            return score(Counts(_summed(w, labels, num_labels), _summed(w, own, num_labels), hits))

        return weighted(lambda w: of_ids(w, said[0]) - of_ids(w, said[1]), times / n)
    drawn = (random.integers(0, n, n) for _ in range(num_draws))
    scores = [[metric.score(said[rows], first.labels[rows]) for said in answers] for rows in drawn]
    return np.asarray([one - other for one, other in scores], np.float64)


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


def _num_ahead(gains: Numbers, observed: float) -> int:
    """Return how many gains are as large as the observed one, but for rounding."""
    rounding = 1e-9 * max(abs(observed), float(np.abs(gains).max()))
    return int(np.count_nonzero(gains >= observed - rounding))


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
}
