"""How an answer is scored: one table of metrics for each form of answers. Light; scipy loads at the first correlation.

A new metric is one `Metric` in a table.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import regex

from loraxs_search.records.codec import Direction
from loraxs_search.tasks.rows import SEPARATOR, composed

Values = npt.NDArray[Any]
Numbers = npt.NDArray[np.float64]
OUTSIDE = "O"  # the tag of a word that is in no entity
Span = tuple[str, int, int]  # an entity: type, first word, the word behind the last one


@dataclass(frozen=True)
class Metric:
    """A metric: which way is better, and its value, in the simplest form that it has.

    Comparing two adapters exchanges some rows' answers, or draws rows, thousands of times: the simpler forms make that
    quick. A metric that has only `whole` is computed anew each time. Predictions and labels are of shape (N,).

    Args:
        row_counts: (predictions, labels) to counts of each row, (N, k), where the metric follows from their sum alone,
            as an F1 of found, said and true entities does.
        of_counts: Such sums, (..., k), float64, to the metric, (...).
        of_rows: (predictions, labels) to the score of each row, (N,), float64, where the metric is the mean of these.
        whole: (predictions, labels) to the metric, a finite number, where it is not computed from either of these.
        of_many: (predictions, labels), both (M, N) and all labels alike, to the metric of each line, (M,).
        column: What of `RowScores` stands in place of predictions: `losses` and `correct` are scored against `counts`
            in place of labels, and need no answers.
        is_share: Whether it is the share of rows whose prediction equals the label.
    """

    name: str
    direction: Direction
    row_counts: Callable[[Values, Values], Values] | None = None
    of_counts: Callable[[Numbers], Numbers] | None = None
    of_rows: Callable[[Values, Values], Numbers] | None = None
    whole: Callable[[Values, Values], float] | None = None
    of_many: Callable[[Values, Values], Numbers] | None = None
    column: Literal["predictions", "losses", "correct"] = "predictions"
    is_share: bool = False

    def score(self, predictions: Values, labels: Values) -> float:
        """Return the metric of answers, a finite number."""
        if self.whole is not None:
            return self.whole(predictions, labels)
        if self.of_rows is not None:
            return float(self.of_rows(predictions, labels).mean())
        assert self.row_counts is not None
        assert self.of_counts is not None
        return float(self.of_counts(self.row_counts(predictions, labels).sum(0, dtype=np.float64)))


def _ratio(top: Numbers, bottom: Numbers) -> Numbers:
    """Return `top / bottom`, both of one shape; 0 where `bottom` is 0."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _equal(predictions: Values, labels: Values) -> Numbers:
    return np.asarray(predictions == labels, np.float64)


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
    return _ratio(_ratio(2 * hits, true + said).sum(-1), occurs.sum(-1).astype(np.float64))


def _matthews(sums: Numbers) -> Numbers:
    true, said, hits = np.split(sums, 3, axis=-1)
    size = true.sum(-1)
    top = hits.sum(-1) * size - (true * said).sum(-1)
    return _ratio(top, np.sqrt((size**2 - (said**2).sum(-1)) * (size**2 - (true**2).sum(-1))))


# ---- numbers ---------------------------------------------------------------------------------------------------------
def _correlation(name: str) -> Callable[[Values, Values], float]:
    """Return the correlation of scipy; 0 where one side is constant, up to its own resolution."""

    def score(predictions: Values, labels: Values) -> float:
        from scipy import stats

        said, true = predictions.astype(np.float64), labels.astype(np.float64)
        # Predictions are made of float32 outputs of a model, which are near zero where predictions are near the mean.
        rounding = 4 * float(np.finfo(np.float32).eps) * np.abs(said - float(true.mean())).max()
        for numbers, least in ((said, rounding), (true, 0.0)):
            if np.abs(numbers - numbers.mean()).max() <= max(1e-12 * np.abs(numbers).max(), least):
                return 0.0
        return float(getattr(stats, name)(said, true).statistic)

    return score


def _errors(predictions: Values, labels: Values) -> Numbers:
    return np.abs(predictions.astype(np.float64) - labels.astype(np.float64))


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
    return _ratio(products - true * said / count, np.sqrt(spreads))


def _explained(sums: Numbers) -> Numbers:
    spread = _spread(sums[..., 0], sums[..., 1], sums[..., 3])
    return np.where(spread > 0, 1 - _ratio(sums[..., 6], spread), 0.0)


def _quadratic_kappa(sums: Numbers) -> Numbers:
    """Return one less the squared errors over those that are expected where labels are said at random."""
    count, true, said, true_squares, said_squares, _, errors = np.moveaxis(sums, -1, 0)
    expected = true_squares + said_squares - 2 * true * said / count
    return np.where(expected > 0, 1 - _ratio(errors, expected), 0.0)


def _spearman(predictions: Values, labels: Values) -> Numbers:
    """Return the correlation of ranks of each line, (M,)."""
    from scipy.stats import rankdata

    said, true = rankdata(predictions, axis=-1), rankdata(labels[:1], axis=-1)
    said, true = (ranks - ranks.mean(-1, keepdims=True) for ranks in (said, true))
    lengths = np.sqrt(np.square(said).sum(-1) * np.square(true).sum(-1))
    return _ratio((said * true).sum(-1), lengths)


def _per_token(sums: Values, counts: Values) -> float:
    return float(sums.astype(np.float64).sum() / counts.astype(np.float64).sum())


# ---- entities that are found, among those that are said and those that are true --------------------------------------
def find_entities(tags: Sequence[str]) -> list[Span]:
    """Return the entities that tags mean, in their order, as seqeval's default mode finds them."""
    found, open_type, start = list[Span](), "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, own_type = tag.partition("-")
        if open_type and (tag == OUTSIDE or prefix == "B" or own_type != open_type):
            found.append((open_type, start, place))
            open_type = ""
        if tag != OUTSIDE and not open_type:
            open_type, start = own_type, place
    return found


@lru_cache(maxsize=2**14)
def _entities(tags: str) -> frozenset[Span]:
    return frozenset(find_entities(tags.split()))


def _set_counts(read: Callable[[str], frozenset[Any]]) -> Callable[[Values, Values], Numbers]:
    """Return what counts of each row how many items, as `read` finds them, are found, said and true, (N, 3)."""

    def counts(predictions: Values, labels: Values) -> Numbers:
        pairs = ((read(said), read(true)) for said, true in zip(predictions, labels, strict=True))
        return np.array([(len(said & true), len(said), len(true)) for said, true in pairs], np.float64).reshape(-1, 3)

    return counts


def _set_f1(sums: Numbers) -> Numbers:
    return _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def _tag_counts(predictions: Values, labels: Values) -> Numbers:
    """Return of each row how many words have the right tag, and how many there are, (N, 2)."""
    counts = []
    for said, true in zip(predictions, labels, strict=True):
        tags = true.split()
        pairs = zip_longest(said.split()[: len(tags)], tags, fillvalue=OUTSIDE)
        counts.append((sum(one == other for one, other in pairs), len(tags)))
    return np.array(counts, np.float64).reshape(-1, 2)


# ---- several labels a row --------------------------------------------------------------------------------------------
@lru_cache(maxsize=2**14)
def label_set(text: str) -> frozenset[str]:
    """Return the labels of a row, which stand in one text."""
    return frozenset(filter(None, text.split(SEPARATOR)))


def _by_label_of_sets(predictions: Values, labels: Values) -> Values:
    """Return what `_by_label` does, of rows with several labels or none; (N, 3 labels)."""
    sets = {text: label_set(text) for text in (*predictions, *labels)}
    known = sorted(frozenset[str]().union(*sets.values()))
    has = {text: [name in own for name in known] for text, own in sets.items()}
    true, said = (np.array([has[text] for text in side], bool) for side in (labels, predictions))
    return np.concatenate([true, said, true & said], axis=1).astype(np.int8)


# ---- texts -----------------------------------------------------------------------------------------------------------
# Scripts that write no spaces between words: a word of theirs begins and ends anywhere.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_LETTER = rf"[\w--{_UNSPACED}]"
# Digits are no part of a longer number, nor of a negative one: 5 is not in 1.5, 1,500 or -5.
_BEFORE = rf"(?<!{_LETTER})(?!(?<=[0-9][.,]|(?<!\w)[-\u2212])[0-9])"
_BEHIND = rf"(?!{_LETTER})(?!(?<=[0-9])[.,][0-9])"
_WORD = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|[^\s{_UNSPACED}]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# Those of ASCII, as SQuAD has them, and those of East Asian texts.
_MARKS = str.maketrans("", "", string.punctuation + "、。〈〉《》「」『』【】〔〕・！（），．：；？～｡｢｣､")  # noqa: RUF001


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


def _contains(predictions: Values, references: Values) -> Numbers:
    """Return 1 for each row whose prediction has the reference in it, as whole words, whatever their case; (N,)."""
    pairs = zip(predictions.tolist(), references.tolist(), strict=True)
    return np.array([bool(ref.strip()) and first_of((ref,), said) is not None for said, ref in pairs], np.float64)


@lru_cache(maxsize=4096)
def _words(text: str) -> list[str]:
    """Return what stands between white space, without articles, marks and case; of scripts that write no spaces, each
    character. Of nothing but articles or marks, these: `A` is not `the`, nor `+` the empty text."""
    plain = composed(text).lower()
    bare = plain.translate(_MARKS)
    for own in (_ARTICLES.sub(" ", bare), bare, plain):
        if words := own.split() if own.isascii() else _WORD.findall(own):
            break
    return words


def _token_f1(predictions: Values, references: Values) -> Numbers:
    """Return SQuAD's F1 of each row, (N,): of the words that prediction and reference share."""
    scores = []
    for said, reference in zip(predictions.tolist(), references.tolist(), strict=True):
        ours, theirs = _words(said), _words(reference)
        shared = (Counter(ours) & Counter(theirs)).total()
        scores.append(2 * shared / (len(ours) + len(theirs)) if ours and theirs else float(ours == theirs))
    return np.array(scores, np.float64)


# ---- the tables ------------------------------------------------------------------------------------------------------
def _table(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


# Where a metric is undefined its value here is: f1, precision and recall 0 where nothing is said or true; matthews,
# pearson and spearman 0 when the predictions or the labels are all the same, r2 when the labels are, and
# quadratic_kappa when both are the same one label.
CLASS_METRICS = _table(
    Metric("accuracy", "maximize", of_rows=_equal, is_share=True),
    Metric("f1", "maximize", _positives, lambda sums: _ratio(2 * sums[..., 0], sums[..., 1])),
    Metric("macro_f1", "maximize", _by_label, _macro_f1),
    Metric("matthews", "maximize", _by_label, _matthews),
)
NUMBER_METRICS = _table(
    Metric("pearson", "maximize", _products, _pearson, whole=_correlation("pearsonr")),
    Metric("spearman", "maximize", whole=_correlation("spearmanr"), of_many=_spearman),
    Metric("mse", "minimize", of_rows=lambda said, true: np.square(_errors(said, true))),
    Metric("mae", "minimize", of_rows=_errors),
    Metric("rmse", "minimize", _products, lambda sums: np.sqrt(sums[..., 6] / sums[..., 0])),
    Metric("r2", "maximize", _products, _explained),
)
LEVEL_METRICS = _table(
    NUMBER_METRICS["mae"],
    Metric("quadratic_kappa", "maximize", _products, _quadratic_kappa),
    CLASS_METRICS["accuracy"],
)
LABEL_SET_METRICS = _table(
    Metric("micro_f1", "maximize", _set_counts(label_set), _set_f1),
    Metric("macro_f1", "maximize", _by_label_of_sets, _macro_f1),
    Metric("subset_accuracy", "maximize", of_rows=_equal, is_share=True),
)
TAG_METRICS = _table(
    Metric("f1", "maximize", _set_counts(_entities), _set_f1),
    Metric("precision", "maximize", _set_counts(_entities), lambda sums: _ratio(sums[..., 0], sums[..., 1])),
    Metric("recall", "maximize", _set_counts(_entities), lambda sums: _ratio(sums[..., 0], sums[..., 2])),
    Metric("accuracy", "maximize", _tag_counts, lambda sums: _ratio(sums[..., 0], sums[..., 1])),
)
TOKEN_METRICS = _table(
    Metric("loss", "minimize", whole=_per_token, column="losses"),
    Metric("token_accuracy", "maximize", whole=_per_token, column="correct"),
)
_WRITTEN = _table(
    Metric("exact_match", "maximize", of_rows=_equal, is_share=True),
    Metric("token_f1", "maximize", of_rows=_token_f1),
    Metric("contains", "maximize", of_rows=_contains),
)
TEXT_METRICS = _WRITTEN | TOKEN_METRICS
METRICS = CLASS_METRICS | NUMBER_METRICS
