from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.tasks import head_for


@pytest.fixture
def classes(make_task):
    return make_task(metrics=("accuracy", "f1"))


@pytest.fixture
def numbers(make_task):
    return make_task(kind="regression", labels=(), metric="pearson", metrics=("pearson", "mse"))


def test_classification_loss_is_cross_entropy_per_row(classes):
    head = head_for(classes)
    logits, labels = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]]), torch.tensor([1, 1, 0])
    loss = head.loss(logits, labels)
    assert loss.shape == (3,)
    torch.testing.assert_close(loss.mean(), functional.cross_entropy(logits, labels))
    assert (head.num_labels, head.label_dtype) == (2, torch.int64)
    assert head.predictions(logits).tolist()[:2] == [1, 0]


def test_regression_loss_is_squared_error_per_row(numbers):
    head = head_for(numbers)
    logits, labels = torch.tensor([[1.0], [-2.0]]), torch.tensor([0.5, 0.0])
    assert head.loss(logits, labels).tolist() == [0.25, 4.0]
    assert (head.num_labels, head.label_dtype) == (1, torch.float32)
    assert head.predictions(logits).tolist() == [1.0, -2.0]


def test_low_precision_logits_are_judged_in_float32(classes, numbers):
    logits = torch.tensor([[0.3, 0.7]], dtype=torch.bfloat16, requires_grad=True)
    assert head_for(classes).loss(logits, torch.tensor([1])).dtype == torch.float32
    assert head_for(numbers).predictions(logits[:, :1]).dtype == np.float32


def test_one_row_keeps_its_shape(numbers):
    assert head_for(numbers).predictions(torch.tensor([[1.5]])).shape == (1,)
    assert head_for(numbers).loss(torch.tensor([[1.5]]), torch.tensor([1.0])).shape == (1,)


def test_scores_come_in_the_tasks_order(classes, numbers):
    scores = head_for(classes).score(np.array([1, 0]), np.array([1, 1]))
    assert list(scores.items()) == [("accuracy", 0.5), ("f1", pytest.approx(2 / 3))]
    assert list(head_for(numbers).score(np.array([1.0, 2.0]), np.array([2.0, 4.0]))) == ["pearson", "mse"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(classes, numbers, bad):
    with pytest.raises(TrialDivergedError, match="finite"):
        head_for(classes).predictions(torch.tensor([[0.0, bad]]))
    with pytest.raises(TrialDivergedError, match="finite"):
        head_for(numbers).predictions(torch.tensor([[bad]]))


def test_predictions_and_labels_must_be_of_one_length(classes):
    with pytest.raises(ValueError, match="2 for 1"):
        head_for(classes).score(np.array([1, 0]), np.array([1]))
    with pytest.raises(ValueError, match="0 for 0"):
        head_for(classes).score(np.array([]), np.array([]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ("only",)}, "at least two labels"),
        ({"labels": ("a", "a")}, "must differ"),
        ({"labels": ("a", "b", "c")}, "`f1` scores 2 labels"),
        ({"metrics": ("accuracy", "mse")}, "`mse` scores regression"),
        ({"kind": "ranking"}, "`kind` must be one of: "),
    ],
)
def test_declarations_that_contradict_themselves(classes, change, words):
    with pytest.raises(TaskDataError, match=words):
        head_for(replace(classes, **change))
