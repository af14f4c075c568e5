"""The two kinds that read a text through a head: what they make of outputs, and what they refuse."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.tasks.kinds import KINDS, checked, metric_fault
from loraxs_search.tasks.rows import Rows, SourceLocation


@pytest.fixture
def classes(make_task):
    return make_task(metrics=("accuracy", "f1"))


@pytest.fixture
def numbers(make_task):
    return make_task(kind="regression", labels=(), metric="pearson", metrics=("pearson", "mse"))


def test_classification_loss_is_cross_entropy_per_row(classes):
    kind = checked(classes)
    outputs, labels = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]]), torch.tensor([1, 1, 0])
    loss = kind.row_losses(outputs, labels)
    assert loss.shape == (3,)
    torch.testing.assert_close(loss.mean(), functional.cross_entropy(outputs, labels))
    assert kind.model.num_outputs == 2
    assert kind.predictions(outputs).tolist()[:2] == [1, 0]


def test_regression_loss_is_squared_error_per_row(numbers):
    kind = checked(numbers)
    outputs, labels = torch.tensor([[1.0], [-2.0]]), torch.tensor([0.5, 0.0])
    assert kind.row_losses(outputs, labels).tolist() == [0.25, 4.0]
    assert kind.model.num_outputs == 1
    assert kind.predictions(outputs).tolist() == [1.0, -2.0]


def test_low_precision_outputs_are_judged_in_float32(classes, numbers):
    outputs = torch.tensor([[0.3, 0.7]], dtype=torch.bfloat16, requires_grad=True)
    assert checked(classes).row_losses(outputs, torch.tensor([1])).dtype == torch.float32
    assert checked(numbers).predictions(outputs[:, :1]).dtype == np.float64


def test_one_row_keeps_its_shape(numbers):
    assert checked(numbers).predictions(torch.tensor([[1.5]])).shape == (1,)
    assert checked(numbers).row_losses(torch.tensor([[1.5]]), torch.tensor([1.0])).shape == (1,)


def test_metrics_come_in_the_tasks_order(classes, numbers):
    metrics = checked(classes).measure(np.array([1, 0]), np.array([1, 1]))
    assert list(metrics.items()) == [("accuracy", 0.5), ("f1", pytest.approx(2 / 3))]
    assert list(checked(numbers).measure(np.array([1.0, 2.0]), np.array([2.0, 4.0]))) == ["pearson", "mse"]


def test_targets_of_many_labels_take_the_memory_of_their_rows(classes):
    kind = checked(replace(classes, labels=tuple(map(str, range(20_000))), metrics=("accuracy",)))
    tracemalloc.start()
    targets = kind.linear().targets(np.array([3, 19_999]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert targets.shape == (2, 20_000) and targets.argmax(1).tolist() == [3, 19_999] and targets.sum() == 2
    assert peak < 2_000_000  # 1.6 GB for a square of the labels


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(classes, numbers, bad):
    with pytest.raises(TrialDivergedError, match="finite"):
        checked(classes).predictions(torch.tensor([[0.0, bad]]))
    with pytest.raises(TrialDivergedError, match="finite"):
        checked(numbers).predictions(torch.tensor([[bad]]))


def test_predictions_and_labels_must_be_of_one_length(classes):
    with pytest.raises(ValueError, match="2 for 1"):
        checked(classes).measure(np.array([1, 0]), np.array([1]))
    with pytest.raises(ValueError, match="0 for 0"):
        checked(classes).measure(np.array([]), np.array([]))


def test_the_likeliest_constant_comes_first_and_reads_as_people_write_it(classes, numbers):
    assert checked(classes).constants(np.array([1, 1, 0])) == [1, 0]
    assert checked(classes).show(1) == "positive"
    assert checked(numbers).constants(np.array([1.0, 2.0, 6.0])) == [3.0, 2.0]
    assert checked(numbers).show(1 / 3) == "0.3333"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ("only",)}, "at least two labels"),
        ({"labels": ("a", "a")}, "must differ"),
        ({"labels": ("a", "b", "c")}, "`f1` does not fit sequence-classification with 3 labels"),
        ({"metrics": ("accuracy", "mse")}, "`mse` does not fit sequence-classification"),
        ({"kind": "regression", "metrics": ("mse",)}, "`labels` must be left out for kind: regression"),
        ({"kind": "ranking"}, "`task.kind` must be one of: "),
    ],
)
def test_declarations_that_contradict_themselves(classes, change, words):
    with pytest.raises(TaskDataError, match=words):
        checked(replace(classes, **change))


@pytest.mark.parametrize(
    ("name", "kind", "num_labels", "words"),
    [
        ("acuracy", "sequence-classification", 2, "must be one of: accuracy"),
        ("mse", "sequence-classification", 2, "use accuracy, f1, macro_f1 or matthews"),
        ("f1", "sequence-classification", 3, "does not fit sequence-classification with 3 labels; use accuracy, macro"),
        ("accuracy", "regression", 0, "use pearson, spearman, mse, mae, rmse or r2"),
        ("f1", "sequence-classification", 2, None),
        ("macro_f1", "sequence-classification", 5, None),
        ("mse", "regression", 0, None),
    ],
)
def test_a_metric_that_does_not_fit_says_what_does(name, kind, num_labels, words):
    keys = {"labels": [f"label {i}" for i in range(num_labels)]}
    fault = metric_fault(KINDS.get(kind), keys, name)
    assert (fault is None) if words is None else words in str(fault)


def test_an_adapter_reads_as_much_of_a_text_as_in_training(classes):
    """It is served so; cut where another task cuts, it would be scored on less than it answers by."""
    assert checked(classes).asked_as(replace(classes, max_length=999)).max_length == 999
    assert checked(classes).asked_as(classes) == classes


@pytest.mark.parametrize(
    ("labels", "has_bias", "said"),
    [
        ([3.5, 3.5, 3.5], True, "3.5"),
        ([1990.0, 2000.0, 2010.0], False, "no bias"),
        ([1990.0, 2000.0, 2010.0], True, None),
        ([1.0, 2.0, 3.0], False, None),
        ([1.0, 2.0, 3.0, 4.0, 1e9], True, "1e+09 (line 6)"),
    ],
)
def test_numbers_that_a_head_hardly_learns_are_warned_of(numbers, labels, has_bias, said):
    values = np.array(labels, np.float32)
    kind = checked(replace(numbers, standardized=True)).fitted(values, has_bias=has_bias)
    place = SourceLocation("rows.csv", range(2, 2 + len(values)))
    warnings = list(kind.warnings({"train": Rows([""] * len(values), None, values, place=place)}, {}))
    assert [said in warning for warning in warnings] == [True] * (said is not None)


def test_outputs_that_agree_to_a_millionth_have_one_correlation_far_from_zero_too(numbers):
    """In the labels' units float32 has steps of 1/64 near 150,000: the answers are taken before they are rounded."""
    draw = np.random.default_rng(0)
    true = (150_000 + draw.standard_normal(200)).astype(np.float32)
    kind = checked(replace(numbers, standardized=True)).fitted(true, has_bias=True)
    outputs = torch.tensor(1e-3 * draw.standard_normal((200, 1)), dtype=torch.float32)
    other = outputs * (1 + 1e-6)
    scores = [kind.metrics["pearson"].score(kind.answers(own), true) for own in (outputs, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    standard = np.corrcoef(outputs[:, 0].double().numpy(), true.astype(np.float64))[0, 1]
    assert scores[0] == pytest.approx(standard, abs=1e-6)
