from __future__ import annotations

import numpy as np
import pytest

from loraxs_search.tasks import METRICS

PREDICTED = np.array([0, 1, 1, 0, 1, 1])
TRUE = np.array([0, 1, 0, 1, 1, 1])  # 1 true negative, 3 true positives, 1 false positive, 1 false negative


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 4 / 6),
        ("f1", 2 * 3 / (2 * 3 + 1 + 1)),
        ("macro_f1", (3 / 4 + 2 * 1 / (2 * 1 + 1 + 1)) / 2),
        ("matthews", (3 * 1 - 1 * 1) / np.sqrt((3 + 1) * (3 + 1) * (1 + 1) * (1 + 1))),
    ],
)
def test_classification_metrics_by_hand(name, expected):
    assert METRICS[name].score(PREDICTED, TRUE) == pytest.approx(expected)


def test_regression_metrics_by_hand():
    predicted, true = np.array([1.0, 2.0, 4.0], dtype=np.float32), np.array([1.0, 3.0, 2.0], dtype=np.float32)
    assert METRICS["mse"].score(predicted, true) == pytest.approx((0 + 1 + 4) / 3)
    assert METRICS["spearman"].score(predicted, true) == pytest.approx(0.5)
    assert METRICS["pearson"].score(predicted, true) == pytest.approx(np.corrcoef(predicted, true)[0, 1])


@pytest.mark.parametrize(("mean", "spread"), [(1e7, 10.0), (0.0, 1e25), (0.0, 1e-25)])
def test_numbers_of_any_size_are_scored_in_float64(mean, spread):
    random = np.random.default_rng(0)
    noise = random.standard_normal((2, 1000))
    true = (mean + spread * noise[0]).astype(np.float32)
    predicted = (mean + spread * noise.sum(0)).astype(np.float32)
    exact = predicted.astype(np.float64), true.astype(np.float64)
    assert METRICS["mse"].score(predicted, true) == pytest.approx(np.square(exact[0] - exact[1]).mean(), rel=1e-9)
    assert METRICS["pearson"].score(predicted, true) == pytest.approx(np.corrcoef(*exact)[0, 1], rel=1e-9)


def test_answers_that_differ_by_rounding_alone_are_constant():
    same = np.full(100, 0.3, np.float32)
    same[::3] = np.nextafter(same[0], np.float32(1))
    labels = np.arange(100, dtype=np.float32)
    assert METRICS["pearson"].score(same, labels) == METRICS["spearman"].score(same, labels) == 0.0
    close = 150_000 + labels
    assert METRICS["pearson"].score(close, labels) == pytest.approx(1.0)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("constant", [0, 1])
def test_constant_predictions_or_labels_give_a_number_without_warning(name, constant):
    same = np.full(6, constant)
    expected = {"accuracy", "f1", "macro_f1", "mse"}
    for predictions, labels in ((same, TRUE), (TRUE, same), (same, same), (same[:1], same[:1])):
        value = METRICS[name].score(predictions, labels)
        assert np.isfinite(value)
        if name not in expected:
            assert value == 0.0


def test_predictions_that_differ_by_rounding_only_have_no_correlation():
    nearly = np.array([1.0, 1.0 + 1e-15, 1.0, 1.0])
    assert METRICS["pearson"].score(nearly, np.array([1.0, 2.0, 3.0, 4.0])) == 0.0


def test_directions():
    assert {name: metric.direction for name, metric in METRICS.items()} == {
        "accuracy": "maximize",
        "f1": "maximize",
        "macro_f1": "maximize",
        "matthews": "maximize",
        "pearson": "maximize",
        "spearman": "maximize",
        "mse": "minimize",
    }
