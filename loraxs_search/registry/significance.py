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
from loraxs_search.tasks.kinds import Metric

MIN_ROWS = 10  # fewer test rows decide nothing
MAX_DRAWS = 10_000  # exchanges; each is drawn with its reverse, which turns the gain round
_EXACT = 11  # rows that differ: 2^11 exchanges are all there are
_FEW, _NO_CHANCE = 20, 0.1  # exchanges ahead that can be counted on; a share of them that no comparison is held to
_RESAMPLES, _RESAMPLED = 1000, 40_000_000  # draws of all rows, and rows drawn in all
_CHUNK_BYTES = 16 * 2**20
_SEED = 0

Numbers = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def p_value(metric: Metric, sign: float, first: ScoredRows, second: ScoredRows) -> float | None:
    """Return the chance of seeing `first` ahead by this much if it were no better; None if rows cannot tell.

    Shares of right answers, such as accuracy: the exact one-sided McNemar test. Others: a paired permutation test. If
    neither is better, it is chance which of the two gave which answer to a row. So the two answers to each row are
    exchanged or left, and the result is the share of exchanges in which `first` is ahead by as much: of all exchanges
    where few rows differ, else of at most `MAX_DRAWS`. Where fewer than twenty of them are ahead, it is the tail of the
    normal distribution with their deviation, unless more of them lie beyond two or three deviations than it has there.

    What is a mean over tokens, such as the loss, can only be compared where both have as many in each row.

    Args:
        sign: 1 when more is better, -1 when less is.
    """
    if not _is_comparable(metric, first, second):
        return None
    if metric.is_share:
        from scipy.stats import binomtest

        won, lost = _won_and_lost(first, second)
        return float(binomtest(won, won + lost, alternative="greater").pvalue) if won + lost else 1.0
    exchange = _exchange(metric, first, second)
    n, observed = exchange.num_rows, sign * float(exchange.gains(np.zeros((1, exchange.num_rows)))[0])
    if n <= _EXACT:
        every = (numbers[:, None] >> np.arange(n) & 1 for numbers in _chunks(2**n, exchange.width))
        gains = np.concatenate([sign * exchange.gains(exchanged.astype(np.float64)) for exchanged in every])
        return _num_ahead(gains, observed) / len(gains)
    random, drawn, ahead = np.random.default_rng(_SEED), list[Numbers](), 0
    for numbers in _chunks(MAX_DRAWS // 2, exchange.width):
        gains = exchange.gains(random.integers(0, 2, (len(numbers), n), np.int8).astype(np.float64))
        drawn.append(np.concatenate([gains, -gains]))
        ahead += _num_ahead(drawn[-1], observed)
        if ahead > max(_FEW, _NO_CHANCE * sum(map(len, drawn))):
            break
    gains = np.concatenate(drawn)
    deviation = float(np.sqrt(np.mean(gains**2)))
    if ahead < _FEW and _has_normal_tail(gains / deviation):
        return normal_tail(observed / deviation)
    return (1 + ahead) / (1 + len(gains))


def loss_bound(metric: Metric, sign: float, first: ScoredRows, second: ScoredRows, level: float) -> float | None:
    """Return what `first` is less worse than `second` by, at a chance of error of `level`; None if rows cannot tell.

    It is the smallest margin for which "worse by this margin or more" is rejected. Shares of right answers: Tango's
    score test for paired proportions (Statistics in Medicine 17, 1998). Others: the deviation of a paired bootstrap of
    the rows, and as Tango's what losses that these rows do not have would add to it: few or none may be luck.
    """
    if not _is_comparable(metric, first, second):
        return None
    if metric.is_share:
        won, lost = _won_and_lost(first, second)
        low, high = 0.0, 1.0
        for _ in range(40):  # the chance falls as the margin grows
            middle = (low + high) / 2
            low, high = (low, middle) if tango(won, lost, len(first.labels), middle) <= level else (middle, high)
        return high
    from scipy.stats import norm

    gains = _resampled_gains(metric, first, second)
    scores = score_of(metric, first), score_of(metric, second)
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


def _is_comparable(metric: Metric, first: ScoredRows, second: ScoredRows) -> bool:
    """Whether two answers to the same rows can be compared by a metric."""
    if not first.same_rows(second) or not len(first.labels):
        return False
    has_both = all(rows.column(metric.column) is not None for rows in (first, second))
    return metric.column == "predictions" or (has_both and first.same_tokens(second))


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


def _sums(metric: Metric, rows: ScoredRows) -> Numbers | None:
    """Return what each row adds to a metric that is a sum over rows, divided by a number; None if it is none."""
    if metric.column != "predictions":
        return np.asarray(rows.column(metric.column), np.float64)
    return None if metric.of_rows is None else metric.of_rows(rows.predictions, rows.labels)


def _counts(metric: Metric, first: ScoredRows, second: ScoredRows) -> tuple[Values, Values]:
    """Return what is counted of each row, of both alike: what is counted may depend on all answers there are."""
    assert metric.row_counts is not None
    answers = np.concatenate([first.predictions, second.predictions])
    counts = metric.row_counts(answers, np.concatenate([first.labels, second.labels]))
    return counts[: len(first.labels)], counts[len(first.labels) :]


def _resampled_gains(metric: Metric, first: ScoredRows, second: ScoredRows) -> Numbers:
    """Return how far apart both are on rows that are drawn from all rows, with replacement, again and again."""
    random, n = np.random.default_rng(_SEED), len(first.labels)
    num_draws = min(_RESAMPLES, max(100, _RESAMPLED // n))

    def weighted(gains: Callable[[Numbers], Numbers]) -> Numbers:
        chunks = (random.multinomial(n, np.full(n, 1 / n), len(own)) for own in _chunks(num_draws, n))
        return np.concatenate([gains(weights.astype(np.float64)) for weights in chunks])

    if (sums := _sums(metric, first)) is not None and (others := _sums(metric, second)) is not None:
        divided_by = np.ones(n) if metric.column == "predictions" else np.asarray(first.counts, np.float64)
        return weighted(lambda weights: weights @ (sums - others) / (weights @ divided_by))
    if (of_counts := metric.of_counts) is not None:
        own, other = _counts(metric, first, second)
        return weighted(lambda weights: of_counts(weights @ own) - of_counts(weights @ other))
    answers = first.predictions, second.predictions
    drawn = (random.integers(0, n, n) for _ in range(num_draws))
    scores = [[metric.score(said[rows], first.labels[rows]) for said in answers] for rows in drawn]
    return np.asarray([one - other for one, other in scores], np.float64)


# ---- exchanges of two answers ----------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Exchange:
    """The rows that two adapters answer differently.

    Args:
        gains: What `first` gains where some of these rows are exchanged, (exchanges, num_rows) of 0 and 1, to
            (exchanges,).
        width: Numbers that an exchange takes.
    """

    num_rows: int
    gains: Callable[[Numbers], Numbers]
    width: int


def _num_ahead(gains: Numbers, observed: float) -> int:
    """Return how many gains are as large as the observed one, but for rounding."""
    rounding = 1e-9 * max(abs(observed), float(np.abs(gains).max()))
    return int(np.count_nonzero(gains >= observed - rounding))


def _chunks(total: int, width: int) -> Iterator[Ids]:
    size = max(1, _CHUNK_BYTES // (8 * max(1, width)))
    for start in range(0, total, size):
        yield np.arange(start, min(start + size, total))


def _exchange(metric: Metric, first: ScoredRows, second: ScoredRows) -> _Exchange:
    if (sums := _sums(metric, first)) is not None and (others := _sums(metric, second)) is not None:
        apart = (sums - others)[sums != others]
        total = len(sums) if metric.column == "predictions" or first.counts is None else int(first.counts.sum())
        return _Exchange(len(apart), lambda exchanged: (1 - 2 * exchanged) @ apart / (total or 1), len(apart))
    if (of_counts := metric.of_counts) is not None:
        own, other = _counts(metric, first, second)
        of_first, of_second = own.sum(0, dtype=np.float64), other.sum(0, dtype=np.float64)
        changes = np.subtract(other, own, dtype=np.float64)[(own != other).any(1)]

        def gains_of_counts(exchanged: Numbers) -> Numbers:
            moved = exchanged @ changes  # (exchanges, k)
            return of_counts(of_first + moved) - of_counts(of_second - moved)

        return _Exchange(len(changes), gains_of_counts, max(changes.shape))
    labels, one, two = first.labels, first.predictions, second.predictions
    differ = np.flatnonzero(one != two)

    def gains(exchanged: Numbers) -> Numbers:
        is_exchanged = np.zeros((len(exchanged), len(labels)), bool)
        is_exchanged[:, differ] = exchanged == 1
        true = np.broadcast_to(labels, is_exchanged.shape)
        answers = np.where(is_exchanged, two, one), np.where(is_exchanged, one, two)
        if (of_many := metric.of_many) is not None:
            return of_many(answers[0], true) - of_many(answers[1], true)
        scores = ([metric.score(*pair) for pair in zip(said, true, strict=True)] for said in answers)
        of_first, of_second = (np.asarray(own, np.float64) for own in scores)
        return of_first - of_second

    return _Exchange(len(differ), gains, len(labels))
