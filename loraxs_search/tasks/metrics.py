"""How an answer is scored: the metric tables. Importing them is light; scipy loads at the first correlation.

A metric with another value than before makes cached reports stale: raise `_ANSWER_VERSION` in `report`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import regex

from loraxs_search.records.literals import Direction
from loraxs_search.tasks.rows import composed

Values = npt.NDArray[np.generic]
Numbers = npt.NDArray[np.float64]
Score = Callable[[Values, Values], float]


@dataclass(frozen=True)
class Metric:
    """A metric: which way is better, and its value. A task kind says which ones fit it.

    What comes behind `column` makes comparing two adapters quick: thousands of times, some rows' answers are exchanged
    or rows are drawn. A metric without any of it is computed each time.

    Args:
        score: (predictions, labels), both of shape (N,), to a finite number.
        is_share: Whether it is the share of rows whose prediction equals the label.
        column: What of `RowScores` stands in place of predictions: `losses` and `correct` are scored against `counts`
            in place of labels, and need no answers.
        of_rows: (predictions, labels) to the score of each row, (N,), float64, where the metric is the mean of these.
        row_counts: (predictions, labels) to counts of each row, (N, k), where the metric follows from their sum alone,
            as an F1 of found, said and true entities does.
        of_counts: Such sums, (..., k), float64, to the metric, (...).
        of_many: (predictions, labels), both (M, N) and all labels alike, to the metric of each line, (M,).
    """

    name: str
    direction: Direction
    score: Score
    is_share: bool = False
    column: Literal["predictions", "losses", "correct"] = "predictions"
    of_rows: Callable[[Values, Values], Numbers] | None = None
    row_counts: Callable[[Values, Values], Values] | None = None
    of_counts: Callable[[Numbers], Numbers] | None = None
    of_many: Callable[[Values, Values], Numbers] | None = None


def by_name(*metrics: Metric) -> dict[str, Metric]:
    """Return metrics by their names."""
    return {metric.name: metric for metric in metrics}


def _mean_of(name: str, direction: Direction, of_rows: Callable[[Values, Values], Numbers]) -> Metric:
    """Return the metric that is the mean of what rows score."""
    return Metric(name, direction, lambda said, true: float(of_rows(said, true).mean()), of_rows=of_rows)


def from_counts(
    name: str,
    direction: Direction,
    row_counts: Callable[[Values, Values], Values],
    of_counts: Callable[[Numbers], Numbers],
) -> Metric:
    """Return the metric that follows from the sum of what is counted of rows."""

    def score(predictions: Values, labels: Values) -> float:
        return float(of_counts(row_counts(predictions, labels).sum(0, dtype=np.float64)))

    return Metric(name, direction, score, row_counts=row_counts, of_counts=of_counts)


def ratio_or_zero(top: Numbers, bottom: Numbers) -> Numbers:
    """Return `top / bottom`, both of one shape; 0 where `bottom` is 0."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _share_of_equal(predictions: Values, labels: Values) -> float:
    return float(np.mean(predictions == labels))


# ---- classes ---------------------------------------------------------------------------------------------------------
def _positives(predictions: Values, labels: Values) -> Values:
    """Return of each row whether label 1 is true and said, and how often it is either; (N, 2)."""
    true, said = labels == 1, predictions == 1
    return np.stack([true & said, true.astype(np.int8) + said], axis=1)


def _by_label(predictions: Values, labels: Values) -> Values:
    """Return of each row and label whether it is true, said, and both; (N, 3 labels)."""
    known = np.unique(np.concatenate([predictions, labels]))
    true, said = labels[:, None] == known, predictions[:, None] == known
    return np.concatenate([true, said, true & said], axis=1).astype(np.int8)


def _macro_f1(sums: Numbers) -> Numbers:
    true, said, hits = np.split(sums, 3, axis=-1)
    occurs = true + said > 0
    return ratio_or_zero(ratio_or_zero(2 * hits, true + said).sum(-1), occurs.sum(-1).astype(np.float64))


def _matthews(sums: Numbers) -> Numbers:
    true, said, hits = np.split(sums, 3, axis=-1)
    size = true.sum(-1)
    top = hits.sum(-1) * size - (true * said).sum(-1)
    return ratio_or_zero(top, np.sqrt((size**2 - (said**2).sum(-1)) * (size**2 - (true**2).sum(-1))))


# ---- numbers ---------------------------------------------------------------------------------------------------------
def _correlation(name: str, predictions: Values, labels: Values) -> float:
    from scipy import stats

    centre = float(labels.astype(np.float64).mean())
    if _constant(predictions, centre) or _constant(labels):
        return 0.0
    return float(getattr(stats, name)(predictions.astype(np.float64), labels.astype(np.float64)).statistic)


def _constant(values: Values, centre: float | None = None) -> bool:
    """Say whether all values are the same, up to their own resolution: no correlation is defined then.

    Args:
        centre: Where the float32 outputs of a model, which numbers were made of, are near zero.
    """
    numbers = values.astype(np.float64)
    spread, most = np.abs(numbers - numbers.mean()).max(), np.abs(numbers).max()
    rounding = 0.0 if centre is None else 4 * float(np.finfo(np.float32).eps) * np.abs(numbers - centre).max()
    return bool(spread <= max(1e-12 * most, rounding))


def _apart(predictions: Values, labels: Values) -> Numbers:
    return np.abs(predictions.astype(np.float64) - labels.astype(np.float64))


def _squared(predictions: Values, labels: Values) -> Numbers:
    return np.square(_apart(predictions, labels))


def _products(predictions: Values, labels: Values) -> Numbers:
    """Return of each row one, label, prediction, their squares, product and squared error, from the mean; (N, 7)."""
    mean = labels.astype(np.float64).mean()
    true, said = labels.astype(np.float64) - mean, predictions.astype(np.float64) - mean
    columns = (np.ones(len(true)), true, said, true**2, said**2, true * said, (true - said) ** 2)
    return np.stack(columns, axis=1)


def _spread(count: Numbers, total: Numbers, squares: Numbers) -> Numbers:
    """Return the sum of squared distances from the mean; 0 where it is rounding."""
    spread = squares - np.square(total) / count
    return np.where(spread > 1e-12 * squares, spread, 0.0)


def _pearson(sums: Numbers) -> Numbers:
    count, true, said, true_squares, said_squares, products, _ = np.moveaxis(sums, -1, 0)
    spreads = _spread(count, true, true_squares) * _spread(count, said, said_squares)
    return ratio_or_zero(products - true * said / count, np.sqrt(spreads))


def _root(sums: Numbers) -> Numbers:
    return np.sqrt(sums[..., 6] / sums[..., 0])


def _explained(sums: Numbers) -> Numbers:
    spread = _spread(sums[..., 0], sums[..., 1], sums[..., 3])
    return np.where(spread > 0, 1 - ratio_or_zero(sums[..., 6], spread), 0.0)


def _spearman(predictions: Values, labels: Values) -> Numbers:
    """Return the correlation of ranks of each line, (M,)."""
    from scipy.stats import rankdata

    said, true = rankdata(predictions, axis=-1), rankdata(labels[:1], axis=-1)
    said, true = (ranks - ranks.mean(-1, keepdims=True) for ranks in (said, true))
    lengths = np.sqrt(np.square(said).sum(-1) * np.square(true).sum(-1))
    return ratio_or_zero((said * true).sum(-1), lengths)


def _ratio(sums: Values, counts: Values) -> float:
    return float(sums.astype(np.float64).sum() / counts.astype(np.float64).sum())


# Where a metric is undefined its value here is: f1 0 without true or predicted positives; matthews, pearson and
# spearman 0 when the predictions or the labels are all the same, and r2 when the labels are.
CLASS_METRICS = by_name(
    Metric("accuracy", "maximize", _share_of_equal, is_share=True),
    from_counts("f1", "maximize", _positives, lambda sums: ratio_or_zero(2 * sums[..., 0], sums[..., 1])),
    from_counts("macro_f1", "maximize", _by_label, _macro_f1),
    from_counts("matthews", "maximize", _by_label, _matthews),
)
NUMBER_METRICS = by_name(
    Metric("pearson", "maximize", partial(_correlation, "pearsonr"), row_counts=_products, of_counts=_pearson),
    Metric("spearman", "maximize", partial(_correlation, "spearmanr"), of_many=_spearman),
    _mean_of("mse", "minimize", _squared),
    _mean_of("mae", "minimize", _apart),
    from_counts("rmse", "minimize", _products, _root),
    from_counts("r2", "maximize", _products, _explained),
)
TOKEN_METRICS = by_name(
    Metric("loss", "minimize", _ratio, column="losses"), Metric("token_accuracy", "maximize", _ratio, column="correct")
)
METRICS = CLASS_METRICS | NUMBER_METRICS


# Scripts that write no spaces between words: a word of theirs begins and ends anywhere.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_LETTER = rf"[\w--{_UNSPACED}]"
# Digits are no part of a longer number, nor of a negative one: 5 is not in 1.5, 1,500 or -5.
_BEFORE = rf"(?<!{_LETTER})(?!(?<=[0-9][.,]|(?<!\w)[-\u2212])[0-9])"
_BEHIND = rf"(?!{_LETTER})(?!(?<=[0-9])[.,][0-9])"


_WORD = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|[^\s{_UNSPACED}]+")


def _words_of(text: str) -> list[str]:
    """Return what stands between white space; of scripts that write none between words, each character."""
    return text.split() if text.isascii() else _WORD.findall(text)


@lru_cache(maxsize=4096)
def _pattern(phrases: tuple[str, ...]) -> regex.Pattern[str]:
    words = ([regex.escape(word) for word in composed(phrase).split()] for phrase in phrases)
    each = "|".join("(" + r"\s+".join(own) + ")" for own in words)
    # (?-f) folds letter by letter: a sharp s is another letter than two of them, which V1 takes it for.
    return regex.compile(f"(?V1)(?-f){_BEFORE}(?:{each}){_BEHIND}", regex.IGNORECASE)


def first_of(phrases: Sequence[str], text: str) -> int | None:
    """Return which phrase is the first in a text, whatever its case; where two begin alike, the first of the two."""
    match = _pattern(tuple(phrases)).search(composed(text))
    return None if match is None or match.lastindex is None else match.lastindex - 1


_ARTICLES = re.compile(r"\b(a|an|the)\b")
# Those of ASCII, as SQuAD has them, and those of East Asian texts.
_MARKS = str.maketrans("", "", string.punctuation + "、。〈〉《》「」『』【】〔〕・！（），．：；？～｡｢｣､")  # noqa: RUF001


def _token_f1(predictions: Values, references: Values) -> Numbers:
    """Return SQuAD's F1 of each row, (N,): of the words that prediction and reference share, without articles, marks
    and case. Of Chinese and other scripts without spaces each character is a word, as SQuAD's followers have it. A text
    of nothing but articles and marks has these for words: `A` is not `the`, nor `+` the empty text."""
    return np.array([_f1(*pair) for pair in zip(predictions.tolist(), references.tolist(), strict=True)], np.float64)


def _contains(predictions: Values, references: Values) -> Numbers:
    """Return 1 for each row whose prediction has the reference in it, as whole words, whatever their case; (N,)."""
    pairs = zip(predictions.tolist(), references.tolist(), strict=True)
    return np.array([bool(ref.strip()) and first_of((ref,), said) is not None for said, ref in pairs], np.float64)


def _f1(prediction: str, reference: str) -> float:
    ours, theirs = _words(prediction), _words(reference)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if ours and theirs else float(ours == theirs)


@lru_cache(maxsize=4096)
def _words(text: str) -> list[str]:
    plain = composed(text).lower()
    bare = plain.translate(_MARKS)
    return _words_of(_ARTICLES.sub(" ", bare)) or _words_of(bare) or _words_of(plain)


TEXT_METRICS = (
    by_name(
        Metric("exact_match", "maximize", _share_of_equal, is_share=True),
        _mean_of("token_f1", "maximize", _token_f1),
        _mean_of("contains", "maximize", _contains),
    )
    | TOKEN_METRICS
)
