"""How an answer is scored: the metric tables. Importing them is light; scikit-learn and scipy load at the first score.

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

from loraxs_search.records import Direction
from loraxs_search.tasks.rows import composed

Values = npt.NDArray[np.generic]
Score = Callable[[Values, Values], float]


@dataclass(frozen=True)
class Metric:
    """A metric: which way is better, and its value. A task kind says which ones fit it.

    Args:
        score: (predictions, labels), both of shape (N,), to a finite number.
        is_share: Whether it is the share of rows whose prediction equals the label.
        of_rows: (predictions, labels) to the score of each row, (N,), float64, where the metric is the mean of these;
            then it is resampled at once. None if it is no such mean.
        row_counts: (predictions, labels) to counts of each row, (N, k), float64, where the metric follows from their
            sum alone, as an F1 of found, said and true entities does. None if it does not.
        of_counts: Such sums, (..., k), to the metric, (...).
        column: What of `RowScores` stands in place of predictions: `losses` and `correct` are scored against `counts`
            in place of labels, and need no answers.
    """

    name: str
    direction: Direction
    score: Score
    is_share: bool = False
    column: Literal["predictions", "losses", "correct"] = "predictions"
    of_rows: Callable[[Values, Values], npt.NDArray[np.float64]] | None = None
    row_counts: Callable[[Values, Values], npt.NDArray[np.float64]] | None = None
    of_counts: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] | None = None


def by_name(*metrics: Metric) -> dict[str, Metric]:
    """Return metrics by their names."""
    return {metric.name: metric for metric in metrics}


def _share_of_equal(predictions: Values, labels: Values) -> float:
    return float(np.mean(predictions == labels))


def _class_f1(average: str, predictions: Values, labels: Values) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average=average, zero_division=0.0))


def _matthews(predictions: Values, labels: Values) -> float:
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if _constant(predictions) or _constant(labels) else float(matthews_corrcoef(labels, predictions))


def _correlation(name: str, predictions: Values, labels: Values) -> float:
    from scipy import stats

    centre = float(labels.astype(np.float64).mean())
    if _constant(predictions, centre) or _constant(labels):
        return 0.0
    return float(getattr(stats, name)(predictions.astype(np.float64), labels.astype(np.float64)).statistic)


def _apart(predictions: Values, labels: Values) -> npt.NDArray[np.float64]:
    return np.abs(predictions.astype(np.float64) - labels.astype(np.float64))


def _squared(predictions: Values, labels: Values) -> npt.NDArray[np.float64]:
    return np.square(_apart(predictions, labels))


def _squares_and_labels(predictions: Values, labels: Values) -> npt.NDArray[np.float64]:
    """Return of each row the squared error, one, the label and its square, labels from their mean; (N, 4)."""
    own = labels.astype(np.float64) - labels.astype(np.float64).mean()
    return np.stack([_squared(predictions, labels), np.ones(len(labels)), own, np.square(own)], axis=1)


def _root(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sqrt(sums[..., 0] / sums[..., 1])


def _explained(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    errors, count, labels, squares = np.moveaxis(sums, -1, 0)
    spread = squares - np.square(labels) / count
    unlike = spread > 1e-12 * squares
    return np.where(unlike, 1 - ratio_or_zero(errors, np.where(unlike, spread, 0.0)), 0.0)


def _ratio(sums: Values, counts: Values) -> float:
    return float(sums.astype(np.float64).sum() / counts.astype(np.float64).sum())


def ratio_or_zero(top: npt.NDArray[np.float64], bottom: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return `top / bottom`, both of one shape; 0 where `bottom` is 0."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _constant(values: Values, centre: float | None = None) -> bool:
    """Say whether all values are the same, up to their own resolution: no correlation is defined then.

    Args:
        centre: Where the float32 outputs of a model, which numbers were made of, are near zero.
    """
    numbers = values.astype(np.float64)
    spread, most = np.abs(numbers - numbers.mean()).max(), np.abs(numbers).max()
    rounding = 0.0 if centre is None else 4 * float(np.finfo(np.float32).eps) * np.abs(numbers - centre).max()
    return bool(spread <= max(1e-12 * most, rounding))


def _mean_of(of_rows: Callable[[Values, Values], npt.NDArray[np.float64]]) -> Score:
    return lambda predictions, references: float(of_rows(predictions, references).mean())


def _from_sums(of_counts: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Score:
    return lambda predictions, labels: float(of_counts(_squares_and_labels(predictions, labels).sum(0)))


# Where a metric is undefined its value here is: f1 0 without true or predicted positives; matthews, pearson and
# spearman 0 when the predictions or the labels are all the same, and r2 when the labels are.
CLASS_METRICS = by_name(
    Metric("accuracy", "maximize", _share_of_equal, is_share=True),
    Metric("f1", "maximize", partial(_class_f1, "binary")),
    Metric("macro_f1", "maximize", partial(_class_f1, "macro")),
    Metric("matthews", "maximize", _matthews),
)
NUMBER_METRICS = by_name(
    Metric("pearson", "maximize", partial(_correlation, "pearsonr")),
    Metric("spearman", "maximize", partial(_correlation, "spearmanr")),
    Metric("mse", "minimize", _mean_of(_squared), of_rows=_squared),
    Metric("mae", "minimize", _mean_of(_apart), of_rows=_apart),
    Metric("rmse", "minimize", _from_sums(_root), row_counts=_squares_and_labels, of_counts=_root),
    Metric("r2", "maximize", _from_sums(_explained), row_counts=_squares_and_labels, of_counts=_explained),
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


def _token_f1(predictions: Values, references: Values) -> npt.NDArray[np.float64]:
    """Return SQuAD's F1 of each row, (N,): of the words that prediction and reference share, without articles, marks
    and case. Of Chinese and other scripts without spaces each character is a word, as SQuAD's followers have it. A text
    of nothing but articles and marks has these for words: `A` is not `the`, nor `+` the empty text."""
    return np.array([_f1(*pair) for pair in zip(predictions.tolist(), references.tolist(), strict=True)], np.float64)


def _contains(predictions: Values, references: Values) -> npt.NDArray[np.float64]:
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
        Metric("token_f1", "maximize", _mean_of(_token_f1), of_rows=_token_f1),
        Metric("contains", "maximize", _mean_of(_contains), of_rows=_contains),
    )
    | TOKEN_METRICS
)
