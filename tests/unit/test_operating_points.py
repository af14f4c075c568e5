"""Where an adapter is sure: thresholds that keep what they promise, what the test rows say, and calibration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest

from loraxs_search.errors import UsageError
from loraxs_search.operating_points import calibration_error, check_point, lower_bound, measure, with_points
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.search import OperatingPoint


def answered(right, num_rows=None):
    """Return rows whose confidence falls from 1 on; `right` of each, or how many of the first are right."""
    right = np.arange(num_rows) < right if num_rows else np.asarray(right, bool)
    return 1 - np.arange(len(right)) / 2 / len(right), right


@pytest.mark.parametrize(("right", "rows"), [(0, 5), (1, 1), (47, 50), (229, 230), (500, 500)])
def test_the_bound_is_that_of_clopper_and_pearson(right, rows):
    expected = binomtest(right, rows, alternative="greater").proportion_ci(0.9).low
    assert lower_bound(right, rows) == pytest.approx(expected)


def test_the_threshold_is_the_last_before_the_first_that_fails_and_test_rows_measure_it():
    validation, test = answered([True] * 400 + [True, False] * 300), answered([True] * 45 + [False] * 5 + [True] * 50)
    (point,) = measure([0.9], validation, test)
    ranks = np.arange(20, 1001, 20)
    passing = [n for n in ranks if n >= 150 and lower_bound(validation[1][:n].sum(), n) >= 0.9]
    assert point.threshold == validation[0][passing[-1] - 1]
    kept = test[1][: sum(test[0] >= point.threshold)]
    assert (point.coverage, point.test_accuracy) == pytest.approx((len(kept) / 100, kept.mean()), abs=1e-6)
    interval = binomtest(int(kept.sum()), len(kept)).proportion_ci(0.95)
    assert point.test_accuracy_interval == pytest.approx((interval.low, interval.high), abs=1e-6)
    (none,) = measure([0.9], validation, (test[0] / 2, test[1]))
    assert (none.coverage, none.test_accuracy) == (0.0, None)


def test_one_that_fails_ends_the_search_although_later_ones_would_pass_and_rows_needed_are_said():
    right = [True] * 130 + [False] * 20 + [True] * 850
    assert lower_bound(980, 1000) > 0.95
    (point,) = measure([0.95], answered(right), answered(right))
    assert (point.threshold, point.validation_rows) == (None, 1000)
    assert point.rows_needed == 1200, "the next step is 1.15 times as many"
    alike = np.full(1000, 0.7), np.array(right)
    assert measure([0.95], alike, alike)[0].threshold == 0.7, "equal confidences are answered together"


@pytest.mark.parametrize(("right", "needed"), [([True] * 100, 300), ([True, False] * 50, None)])
def test_perfect_answers_to_few_rows_show_little_and_poor_ones_nothing(right, needed):
    (point,) = measure([0.99], answered(right), answered(right))
    assert (point.threshold, point.rows_needed) == (None, needed)
    assert str(needed or "none would") in str(point)


def test_promises_hold_in_nine_of_ten_searches_and_most_rows_that_could_be_answered_are():
    random = np.random.default_rng(0)

    def rows(count):
        sure = expit(4 * np.abs(random.normal(size=count)))
        return sure, random.random(count) < sure

    all_rows, points = rows(100_000), (0.9, 0.95)
    found = [measure(points, rows(500), all_rows) for _ in range(100)]
    for point, could in zip(zip(*found, strict=True), (0.92, 0.73), strict=True):
        assert np.mean([it.threshold is None or it.test_accuracy >= it.point for it in point]) >= 0.9
        assert np.mean([it.coverage or 0.0 for it in point]) > 0.75 * could


def test_calibration_error_is_the_mean_distance_of_bins_of_equally_many_rows():
    confidences = np.repeat([0.6, 0.9], [500, 1000])  # bins of 100 rows
    right = np.tile(np.arange(10) < 8, 150)
    assert calibration_error((confidences, right)) == pytest.approx((0.2 * 5 + 0.1 * 10) / 15)
    assert calibration_error(answered([True] * 3)) == pytest.approx(1 / 6), "three bins of one row"


def test_a_prediction_says_where_it_is_sure_and_other_points_are_refused():
    points = [OperatingPoint(0.9, 0.7, 100), OperatingPoint(0.95, 0.8, 100), OperatingPoint(0.99, None, 100)]
    sure, unsure, none = with_points([Prediction("", "a", score) for score in (0.8, 0.75, None)], points)
    assert [it.sure_at for it in (sure, unsure)] == [{0.9: True, 0.95: True}, {0.9: True, 0.95: False}]
    assert (sure.sure(0.95), unsure.sure(0.95), none.sure(0.9)) == (True, False, False)
    with pytest.raises(UsageError, match=r"0\.9, 0\.95"):
        sure.sure(0.99)
    with pytest.raises(UsageError, match="it has none"):
        with_points([Prediction("", "a", 0.8)], [])[0].sure(0.9)
    check_point(0.95, points, "toy")
    for point in (0.99, 0.94):
        with pytest.raises(UsageError, match=r"toy: 0\.9, 0\.95"):
            check_point(point, points, "toy")
