"""How texts are scored against references: the metric table of written answers. Light."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from loraxs_search.tasks._texts import composed
from loraxs_search.tasks.kinds._words import first_of, words_of
from loraxs_search.tasks.metrics import TOKEN_METRICS, Metric, Score, Values

_ARTICLES = re.compile(r"\b(a|an|the)\b")
# Those of ASCII, as SQuAD has them, and those of East Asian texts.
_MARKS = str.maketrans("", "", string.punctuation + "、。〈〉《》「」『』【】〔〕・！（），．：；？～｡｢｣､")  # noqa: RUF001


def _exact_match(predictions: Values, references: Values) -> float:
    return float(np.mean(predictions == references))


def token_f1(predictions: Values, references: Values) -> npt.NDArray[np.float64]:
    """Return SQuAD's F1 of each row, (N,): of the words that prediction and reference share, without articles, marks
    and case. Of Chinese and other scripts without spaces each character is a word, as SQuAD's followers have it. A text
    of nothing but articles and marks has these for words: `A` is not `the`, nor `+` the empty text."""
    return np.array([_f1(*pair) for pair in zip(predictions.tolist(), references.tolist(), strict=True)], np.float64)


def contains(predictions: Values, references: Values) -> npt.NDArray[np.float64]:
    """Return 1 for each row whose prediction has the reference in it, as whole words, whatever their case; (N,)."""
    pairs = zip(predictions.tolist(), references.tolist(), strict=True)
    return np.array([_has(prediction, reference) for prediction, reference in pairs], np.float64)


def _f1(prediction: str, reference: str) -> float:
    ours, theirs = _words(prediction), _words(reference)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if ours and theirs else float(ours == theirs)


@lru_cache(maxsize=4096)
def _words(text: str) -> list[str]:
    plain = composed(text).lower()
    bare = plain.translate(_MARKS)
    return words_of(_ARTICLES.sub(" ", bare)) or words_of(bare) or words_of(plain)


def _has(prediction: str, reference: str) -> bool:
    return bool(reference.strip()) and first_of((reference,), prediction) is not None


def _mean_of(of_rows: Callable[[Values, Values], npt.NDArray[np.float64]]) -> Score:
    return lambda predictions, references: float(of_rows(predictions, references).mean())


TEXT_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact_match", "maximize", _exact_match, is_share=True),
        Metric("token_f1", "maximize", _mean_of(token_f1), of_rows=token_f1),
        Metric("contains", "maximize", _mean_of(contains), of_rows=contains),
    )
} | TOKEN_METRICS
