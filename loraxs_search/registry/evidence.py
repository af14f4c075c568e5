"""What answers to the test rows show: scores, slices, and whether a gain is luck. Pure.

An adapter's answers are kept in a file beside it, which may also say what each row has in the task's slice columns. The
same rows give the same numbers, on every machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import IntegrityError
from loraxs_search.operating_points import Answered
from loraxs_search.records.search import AnswerFlips, SliceScore
from loraxs_search.tasks.kinds import Metric

Values = npt.NDArray[Any]
FILE = "test_rows.safetensors"
MAX_ROWS_BYTES = 2**30  # a row is 25 bytes, and 20 for tokens: twenty million rows
SCORING = 1  # how texts become answers: where they end, which number they name; 0 in files that do not say
_SLICE = "slice."  # before a column's name
_TYPES = {"losses": np.float32, "counts": np.int64, "correct": np.int64}  # columns that speak of tokens


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Answers to every test row, in test order.

    Args:
        predictions: Of the adapter itself, shape (N,): label ids, numbers or texts.
        labels: What they should be, shape (N,).
        losses: The sum of each row's loss, (N,), float32; None if metrics need none, as the next two.
        counts: What these are sums of, (N,), int64.
        correct: How many of these were predicted, (N,), int64.
        scoring: By which `SCORING` texts were read; 0 where answers are no texts.
        slices: By slice column, the value of each row, (N,), texts; empty where the task has none.
        confidences: How likely each answer is, (N,), float64; None if that is not known.
    """

    predictions: Values
    labels: Values
    losses: npt.NDArray[np.float32] | None = None
    counts: npt.NDArray[np.int64] | None = None
    correct: npt.NDArray[np.int64] | None = None
    scoring: int = 0
    slices: Mapping[str, Values] = field(default_factory=dict)
    confidences: npt.NDArray[np.float64] | None = None

    @classmethod
    def of(
        cls,
        predictions: Sequence[float | str],
        labels: Sequence[float | str],
        losses: Sequence[float] | None = None,
        counts: Sequence[int] | None = None,
        correct: Sequence[int] | None = None,
        slices: Mapping[str, Sequence[str]] | None = None,
        confidences: Sequence[float] | None = None,
    ) -> ScoredRows:
        """Make rows of plain values; whole numbers are label ids."""
        some = [*predictions[:1], *labels[:1]]
        kind: npt.DTypeLike = np.float64 if any(isinstance(value, float) for value in some) else np.int64
        if any(isinstance(value, str) for value in some):
            kind = object  # a text as long as it is, not as the longest one
        tokens = {"losses": losses, "counts": counts, "correct": correct}
        arrays = {name: None if column is None else np.asarray(column, _TYPES[name]) for name, column in tokens.items()}
        groups = {name: np.asarray(values, object) for name, values in (slices or {}).items()}
        arrays["confidences"] = None if confidences is None else np.asarray(confidences, np.float64)
        return cls(np.asarray(predictions, kind), np.asarray(labels, kind), **arrays, scoring=SCORING, slices=groups)

    @property
    def answered(self) -> Answered | None:
        """The confidence of each answer and whether it is right; None if confidences are not known."""
        return None if self.confidences is None else (self.confidences, self.predictions == self.labels)

    def column(self, name: str) -> Values | None:
        """Return what a metric is taken of, by its `Metric.column`; None if these rows lack it."""
        values: Values | None = getattr(self, name)
        return values

    def same_tokens(self, other: ScoredRows) -> bool:
        """Whether as many tokens were learnt of each row: sums over them can be compared then."""
        return self.counts is not None and other.counts is not None and np.array_equal(self.counts, other.counts)

    def read_alike(self, other: ScoredRows) -> bool:
        """Whether the same rules made answers of what was written; ids and numbers are not written."""
        return self.labels.dtype.kind != "O" or self.scoring == other.scoring

    def same_rows(self, other: ScoredRows) -> bool:
        """Whether both are answers to the same rows, as far as labels can tell."""
        return self.labels.dtype.kind == other.labels.dtype.kind and np.array_equal(self.labels, other.labels)

    def flips_from(self, champion: ScoredRows) -> AnswerFlips | None:
        """Return what these answers change of a champion's; None of numbers, of other rows, or of rows without any."""
        if self.labels.dtype.kind not in "iO" or not self.same_rows(champion):
            return None
        was, is_right = (rows.predictions == rows.labels for rows in (champion, self))
        if not (was.any() or is_right.any()):  # a metric of tokens alone asks for no answers
            return None
        return AnswerFlips(int((was & ~is_right).sum()), int((is_right & ~was).sum()), len(was))

    def to_bytes(self) -> bytes:
        """Return a safetensors file: predictions, labels, and for ids and texts whether each answer is correct.

        Texts are stored as bytes of a JSON list. Sums over tokens and slices stand beside them where there are any.
        """
        from safetensors.numpy import save

        tensors = {"predictions": _stored(self.predictions), "labels": _stored(self.labels)}
        if self.labels.dtype.kind in "iO":
            tensors["correct"] = (self.predictions == self.labels).astype(np.uint8)
        tensors |= {f"token_{name}": values for name in _TYPES if (values := self.column(name)) is not None}
        if self.labels.dtype.kind == "O":
            tensors["scoring"] = np.array([self.scoring])
        if self.confidences is not None:
            tensors["confidences"] = self.confidences
        tensors |= {f"{_SLICE}{name}": _stored(values) for name, values in self.slices.items()}
        return save(tensors, {"rows": json.dumps({"order": "test"})})

    @classmethod
    def from_bytes(cls, content: bytes) -> ScoredRows:
        """Read back what `to_bytes` wrote.

        Raises:
            IntegrityError: the bytes are no such file.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(content)
            tokens: dict[str, Any] = {name: tensors.get(f"token_{name}") for name in _TYPES}
            scoring = int(tensors["scoring"][0]) if "scoring" in tensors else 0
            slices = {name.removeprefix(_SLICE): _values(it) for name, it in tensors.items() if name.startswith(_SLICE)}
            said = _values(tensors["predictions"]), _values(tensors["labels"])
            rows = cls(*said, **tokens, scoring=scoring, slices=slices, confidences=tensors.get("confidences"))
        except (SafetensorError, KeyError, IndexError, ValueError, TypeError) as error:
            raise IntegrityError(f"{FILE} must hold predictions and labels, but: {error}.") from error
        columns = (rows.column(name) for name in ("predictions", "labels", "confidences", *_TYPES))
        shapes = {values.shape for values in (*columns, *slices.values()) if values is not None}
        if len(shapes) > 1:
            raise IntegrityError(f"{FILE} must have an answer a row, but got shapes {sorted(shapes)}.")
        return rows


def _stored(values: Values) -> Values:
    if values.dtype.kind != "O":
        return values
    return np.frombuffer(json.dumps(values.tolist()).encode(), np.uint8)


def _values(stored: Values) -> Values:
    return np.array(json.loads(stored.tobytes()), object) if stored.dtype == np.uint8 else stored


def score_of(metric: Metric, rows: ScoredRows, chosen: npt.NDArray[np.bool_] | slice = slice(None)) -> float | None:
    """Return a metric of rows, or of those that are chosen; None if they lack what it is taken of."""
    values = rows.column(metric.column)
    against = rows.labels if metric.column == "predictions" else rows.counts
    if values is None or against is None or not len(values[chosen]):
        return None
    return metric.score(values[chosen], against[chosen])


# ---- slices ----------------------------------------------------------------------------------------------------------
def slice_scores(
    metric: Metric, sign: float, rows: ScoredRows, champion: ScoredRows | None = None
) -> tuple[SliceScore, ...]:
    """Return a metric of the rows of each slice, by column and value.

    Args:
        sign: 1 when more is better, -1 when less is.
        champion: Another adapter's answers, which need not say their slices; answers to other rows count for nothing.
    """
    found, champion = list[SliceScore](), champion if champion is not None and rows.same_rows(champion) else None
    for column, values in rows.slices.items():
        for value in sorted(set(values.tolist())):
            chosen = values == value
            with np.errstate(invalid="ignore", divide="ignore"):  # a mean over tokens, of rows without one
                scores = [None if it is None else score_of(metric, it, chosen) for it in (rows, champion)]
            own, other = (score if score is not None and math.isfinite(score) else None for score in scores)
            loss = None if own is None or other is None else sign * (other - own)
            found.append(SliceScore(column, value, int(chosen.sum()), own, other, loss))
    return tuple(found)


# ---- significance ----------------------------------------------------------------------------------------------------
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
    n, gains_of, width = _exchange(metric, first, second)
    observed = sign * float(gains_of(np.zeros((1, n)))[0])
    if n <= _EXACT:
        every = (numbers[:, None] >> np.arange(n) & 1 for numbers in _chunks(2**n, width))
        gains = np.concatenate([sign * gains_of(exchanged.astype(np.float64)) for exchanged in every])
        return _num_ahead(gains, observed) / len(gains)
    random, drawn, ahead = np.random.default_rng(_SEED), list[Numbers](), 0
    for numbers in _chunks(MAX_DRAWS // 2, width):
        gains = gains_of(random.integers(0, 2, (len(numbers), n), np.int8).astype(np.float64))
        drawn.append(np.concatenate([gains, -gains]))
        ahead += _num_ahead(drawn[-1], observed)
        if ahead > max(_FEW, _NO_CHANCE * sum(map(len, drawn))):
            break
    gains = np.concatenate(drawn)
    deviation = float(np.sqrt(np.mean(gains**2)))
    if ahead < _FEW:  # the normal tail, if no more draws lie beyond two and three deviations than of it, but for chance
        expected = {z: len(gains) * _normal_tail(z) for z in (2.0, 3.0)}
        beyond = {z: np.count_nonzero(gains / deviation >= z) for z in expected}
        if all(beyond[z] <= number + 4 * math.sqrt(number) for z, number in expected.items()):
            return _normal_tail(observed / deviation)
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
            low, high = (low, middle) if _tango(won, lost, len(first.labels), middle) <= level else (middle, high)
        return high
    from scipy.stats import norm

    gains = _resampled_gains(metric, first, second)
    scores = score_of(metric, first), score_of(metric, second)
    if scores[0] is None or scores[1] is None or not np.isfinite(gains).all():
        return None
    n, deviation, z = len(first.labels), float(gains.std()), max(0.0, float(norm.isf(level)))
    num_unlike = np.count_nonzero(first.column(metric.column) != second.column(metric.column))
    of_row = n * deviation / math.sqrt(num_unlike) if num_unlike else 2.0  # a row is worth, times n; Matthews 2
    # The least d with d = z sqrt(deviation^2 + of_row d / n): if it loses d more, so much more is the variance.
    unseen = of_row * z**2 / n / 2
    return max(0.0, unseen + math.hypot(unseen, z * deviation) - sign * (scores[0] - scores[1]))


def _tango(won: int, lost: int, num_rows: int, margin: float) -> float:
    """Return the chance of so few losses if the share of rows that are lost exceeds that of rows won by `margin`.

    Source: Tango (1998), formulas 12 and 13: the variance is that of the likeliest shares that differ by `margin`.
    """
    n, difference = num_rows, -margin
    linear = (won + lost) * (1 - difference) - 2 * difference * (n - won)
    lost_share = (linear + math.sqrt(linear**2 + 8 * n * lost * difference * (1 - difference))) / (4 * n)
    variance = n * (2 * lost_share + difference * (1 - difference))
    ahead = won - lost - n * difference
    return _normal_tail(ahead / math.sqrt(variance)) if variance > 0 else float(ahead <= 0)


def _normal_tail(z: float) -> float:
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
def _num_ahead(gains: Numbers, observed: float) -> int:
    """Return how many gains are as large as the observed one, but for rounding."""
    rounding = 1e-9 * max(abs(observed), float(np.abs(gains).max()))
    return int(np.count_nonzero(gains >= observed - rounding))


def _chunks(total: int, width: int) -> Iterator[Ids]:
    size = max(1, _CHUNK_BYTES // (8 * max(1, width)))
    for start in range(0, total, size):
        yield np.arange(start, min(start + size, total))


def _exchange(metric: Metric, first: ScoredRows, second: ScoredRows) -> tuple[int, Callable[[Numbers], Numbers], int]:
    """Return how many rows two adapters answer differently, and what `first` gains where some of them are exchanged.

    The gains take (exchanges, rows) of 0 and 1, and return (exchanges,). The last value is how many numbers an exchange
    takes.
    """
    if (sums := _sums(metric, first)) is not None and (others := _sums(metric, second)) is not None:
        apart = (sums - others)[sums != others]
        total = len(sums) if metric.column == "predictions" or first.counts is None else int(first.counts.sum())
        return len(apart), lambda exchanged: (1 - 2 * exchanged) @ apart / (total or 1), len(apart)
    if (of_counts := metric.of_counts) is not None:
        own, other = _counts(metric, first, second)
        of_first, of_second = own.sum(0, dtype=np.float64), other.sum(0, dtype=np.float64)
        changes = np.subtract(other, own, dtype=np.float64)[(own != other).any(1)]

        def gains_of_counts(exchanged: Numbers) -> Numbers:
            moved = exchanged @ changes  # (exchanges, k)
            return of_counts(of_first + moved) - of_counts(of_second - moved)

        return len(changes), gains_of_counts, max(changes.shape)
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

    return len(differ), gains, len(labels)
