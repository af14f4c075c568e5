"""Metrics of texts, row by row and over all rows."""

from __future__ import annotations

import numpy as np
import pytest

from loraxs_search.registry import ScoredRows
from loraxs_search.registry.significance import p_value
from loraxs_search.tasks.kinds._text_metrics import TEXT_METRICS, contains, token_f1


def texts(*values: str):
    return np.array(values, object)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("The cat, sat.", "a cat sat", 1.0),
        ("cat sat down", "cat sat", 0.8),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the", "a", 0.0),
        ("", "A", 0.0),
        ("A.", "a", 1.0),
        ("-", "+", 0.0),
        ("", "?!", 0.0),
        ("cat cat", "cat", 2 / 3),
        ("cafe\u0301", "caf\u00e9", 1.0),
        ("我喜欢北京", "北京", 4 / 7),
        ("在北京。", "在 北京", 1.0),
        ("iPhone15很好", "iphone15 很好", 1.0),
        ("、", "。", 0.0),
        ("ที่นี่", "ที่", 2 / 3),
    ],
)
def test_token_f1_is_that_of_squad(prediction, reference, score):
    assert token_f1(texts(prediction), texts(reference)) == pytest.approx([score])


@pytest.mark.parametrize(
    ("prediction", "reference", "has"),
    [
        ("It is Paris, of course", "paris", 1),
        ("Parisian", "Paris", 0),
        ("136", "36", 0),
        ("it is (A).", "(A)", 1),
        ("", "x", 0),
        ("1.5 or 1,500", "5", 0),
        ("It is -5", "5", 0),
        ("from 3-5", "5", 1),
        ("New\n York", "new york", 1),
        ("\u6211\u5728\u5317\u4eac\u5e02", "\u5317\u4eac", 1),
        ("a cafe\u0301", "caf\u00e9", 1),
    ],
)
def test_contains_looks_for_whole_words(prediction, reference, has):
    assert contains(texts(prediction), texts(reference)).tolist() == [has]


def test_metrics_are_means_over_rows():
    predictions, references = texts("a b", "c", ""), texts("a b", "c d", "e")
    assert TEXT_METRICS["exact_match"].score(predictions, references) == pytest.approx(1 / 3)
    for name in ("token_f1", "contains"):
        metric = TEXT_METRICS[name]
        assert metric.of_rows is not None
        assert metric.score(predictions, references) == pytest.approx(metric.of_rows(predictions, references).mean())


@pytest.mark.parametrize("metric", ["exact_match", "token_f1", "contains"])
def test_adapters_are_compared_row_by_row(metric):
    references = texts(*(f"word {i}" for i in range(60)))
    better = ScoredRows(np.where(np.arange(60) < 40, references, "wrong"), references)
    worse = ScoredRows(np.where(np.arange(60) < 10, references, "wrong"), references)
    assert p_value(metric, 1.0, better, worse) < 0.01
    assert p_value(metric, 1.0, worse, better) > 0.9
