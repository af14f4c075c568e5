"""Metrics of texts, row by row and over all rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from loraxs_search.tasks.metrics import METRICS, TAG_METRICS, TEXT_METRICS

TRUE = np.array([0, 1, 0, 1, 1, 1])


def test_numbers_of_any_size_are_scored_in_float64():
    for mean, spread in [(1e7, 10.0), (0.0, 1e25), (0.0, 1e-25)]:
        noise = np.random.default_rng(0).standard_normal((2, 1000))
        both = [(mean + spread * it).astype(np.float32) for it in (noise.sum(0), noise[0])]
        exact = [it.astype(np.float64) for it in both]
        assert METRICS["mse"].score(*both) == pytest.approx(np.square(exact[0] - exact[1]).mean(), rel=1e-9)
        assert METRICS["pearson"].score(*both) == pytest.approx(np.corrcoef(*exact)[0, 1], rel=1e-9)


def test_errors_of_numbers_are_those_of_sklearn():
    draw = np.random.default_rng(0)
    true = (150_000 + draw.standard_normal(500)).astype(np.float32)
    said = true.astype(np.float64) + draw.standard_normal(500)
    exact = true.astype(np.float64)
    for name, known in {
        "mae": sklearn_metrics.mean_absolute_error,
        "rmse": sklearn_metrics.root_mean_squared_error,
        "r2": sklearn_metrics.r2_score,
    }.items():
        assert METRICS[name].score(said, true) == pytest.approx(known(exact, said), rel=1e-9)
    assert METRICS["r2"].score(said, np.full(500, 7.0)) == 0.0


def test_answers_that_differ_by_rounding_alone_are_constant():
    same = np.full(100, 0.3, np.float32)
    same[::3] = np.nextafter(same[0], np.float32(1))
    labels = np.arange(100, dtype=np.float32)
    assert METRICS["pearson"].score(same, labels) == METRICS["spearman"].score(same, labels) == 0.0
    close = 150_000 + labels
    assert METRICS["pearson"].score(close, labels) == pytest.approx(1.0)


def test_constant_predictions_or_labels_give_a_number_without_warning():
    for name, metric in METRICS.items():
        same = np.full(6, 1)
        for predictions, labels in ((same, TRUE), (TRUE, same), (same, same), (same[:1], same[:1])):
            value = metric.score(predictions, labels)
            assert value == 0.0 if name in ("matthews", "pearson", "spearman") else np.isfinite(value)


NUMBERS = st.integers(-40, 40).map(lambda quarters: quarters / 4)  # ties and constants occur


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_many_answers_at_once_are_correlated_as_one_is(pairs):
    predictions, labels = (np.array(column) for column in zip(*pairs, strict=True))
    pearson, spearman = METRICS["pearson"], METRICS["spearman"]
    counts, some = pearson.row_counts(predictions, labels), slice(len(labels) // 2, None)
    for rows in (slice(None), some):  # of a draw, the labels' mean is another one
        known = pearson.score(predictions[rows], labels[rows])
        assert pearson.of_counts(counts[rows].sum(0)) == pytest.approx(known, rel=1e-6, abs=1e-6)
    (of_many,) = spearman.of_many(predictions[None], labels[None])
    assert of_many == pytest.approx(spearman.score(predictions, labels), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("num_labels", [2, 3])
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_metrics_of_classes_are_those_of_sklearn(num_labels, pairs):
    predictions, labels = (np.minimum(column, num_labels - 1) for column in zip(*pairs, strict=True))
    known = {"macro_f1": sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0.0)}
    if len({*labels, *predictions}) > 1:  # else it warns
        known["matthews"] = sklearn_metrics.matthews_corrcoef(labels, predictions)
    if num_labels == 2:
        known["f1"] = sklearn_metrics.f1_score(labels, predictions, zero_division=0.0)
    assert {name: METRICS[name].score(predictions, labels) for name in known} == pytest.approx(known)


def test_less_is_better_of_errors_alone():
    tables = (METRICS, TAG_METRICS, TEXT_METRICS)
    falling = {name for table in tables for name, metric in table.items() if metric.direction == "minimize"}
    assert falling == {"mse", "mae", "rmse", "loss"}


def texts(*values):
    return np.array(values, object)


def test_token_f1_is_that_of_squad():
    for prediction, reference, score in [
        ("The cat, sat.", "a cat sat", 1.0),
        ("", "cat", 0.0),
        ("cat cat", "cat cat dog", 0.8),
        ("cafe\u0301", "caf\u00e9", 1.0),
        ("我喜欢北京", "北京", 4 / 7),
        ("在北京。", "在 北京", 1.0),
    ]:
        assert TEXT_METRICS["token_f1"].of_rows(texts(prediction), texts(reference)) == pytest.approx([score])


def test_contains_looks_for_whole_words():
    for prediction, reference, has in [
        ("It is Paris, of course", "paris", 1),
        ("Parisian", "Paris", 0),
        ("1.5 or 1,500", "5", 0),
        ("It is -5", "5", 0),
        ("\u6211\u5728\u5317\u4eac\u5e02", "\u5317\u4eac", 1),
    ]:
        assert TEXT_METRICS["contains"].of_rows(texts(prediction), texts(reference)).tolist() == [has]
