"""Labels as files have them: names, ids, numbers that are names, and every one that does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.text_tasks import broken_laws
from torch.nn import functional

from loraxs_search.errors import TaskDataError
from loraxs_search.tasks.encoded import Batch
from loraxs_search.tasks.kinds import PassOutputs, kind_of
from loraxs_search.tasks.rows import Columns, Rows, SourceLocation

PLACE = SourceLocation("rows.csv", lines=range(2, 1000))
SIGNS, STARS = ("negative", "positive"), ("1", "2", "3", "4", "5")


@pytest.fixture
def numbers(make_task):
    return make_task(kind="regression", labels=(), metric="pearson", metrics=("pearson", "mse"))


@pytest.fixture
def read(make_task):
    """Read labels of a task that has these names; the first row stands in line 2."""

    def labels(values, names=(), stored=None, place=PLACE, **changes):
        columns = Columns(["text", "label"], {"text": ["x"] * len(values), "label": values}, stored_names=stored)
        return kind_of(make_task(labels=names, **changes)).read(columns, place).labels.tolist()

    return labels


def test_labels_by_name_or_id(read):
    for values, names, stored, ids in [
        ([" negative", "1", 0, 1.0], SIGNS, None, [0, 1, 0, 1]),
        (["0.0", "1."], SIGNS, None, [0, 1]),  # what pandas writes once a label was missing
        ([False, "TRUE"], SIGNS, None, [0, 1]),
        (["1", "5.0", 2.0], STARS, None, [0, 4, 1]),
        ([-1, 1], ("-1", "1"), None, [0, 1]),
        ([1, "none"], ("1", "2", "none"), None, [0, 2]),
        (["cafe\u0301", "caf\u00e9"], ("tea", "caf\u00e9"), None, [1, 1]),
        (["007", 8, "8.0"], ("007", "8"), None, [0, 1, 1]),
        # Ids that the data themselves name.
        ([0, 1], ("bad", "good"), ["0", "1"], [0, 1]),
        ([0, 1], SIGNS, ["Positive", "Negative"], [1, 0]),
        ([1, 2], ("a", "b"), ["c", "a", "b"], [0, 1]),
        ([0, 1, 2], ("negative", "neutral", "positive"), ["neg", "neutral", "pos"], [0, 1, 2]),
    ]:
        assert read(values, names, stored) == ids


def test_what_is_no_label_is_told_with_its_line_and_what_is_allowed(read):
    many = [f"label-{number:03d}" for number in range(500)]
    allowed = "negative, positive or an id in 0..1, but rows.csv has"
    for values, names, stored, said in [
        *(([0, 1, 0, value, 1], SIGNS, None, allowed) for value in (2, None, float("nan"), [1], "1e0")),
        # Where a name is a number, numbers are names and never ids.
        *(
            ([value], STARS, None, f"must be one of 1, 2, 3, 4, 5, but rows.csv has {value!r} (")
            for value in (0, False)
        ),
        ([1], ("1", "1.0"), None, "has 1 (line 2)"),
        ([0, 2], ("bad", "good"), ["bad", "good"], "has 2 (line 3)"),
        ([0, 1], ("a", "b"), ["c", "a", "b"], "a, b (the data name their ids c, a, b), but rows.csv has 0 (line 2)"),
        ([0, "postive", 1, "", "postive"], SIGNS, None, "has 'postive' (line 3 and 1 more row), '' (line 5)."),
        (list(range(2, 11)), SIGNS, None, "2 (line 2), 3 (line 3), 4 (line 4), 5 (line 5), 6 (line 6) and 4 other"),
        ([0, "POSITIVE"], SIGNS, None, "Did you mean positive? `label`"),
        (["positiv", "NEGATIVE", "other"], SIGNS, None, "positive by 'positiv', negative by 'NEGATIVE'? `label`"),
        (["label-5"], many, None, "label-019 and 480 more or an id in 0..499, but rows.csv has 'label-5' (line 2)"),
    ]:
        with pytest.raises(TaskDataError) as caught:
            read(values, names, stored)
        assert said in caught.value.message
        assert said != allowed or caught.value.message.endswith(" (line 5).")


def test_numbers_are_finite_and_differ_by_more_than_float32_rounds_them(read):
    number = {"kind": "regression", "metric": "mse", "metrics": ("mse",)}
    assert read([1, "2.5", "1e-1"], **number) == [1.0, 2.5, np.float32(0.1)]
    for value in [None, "many", True, float("inf"), 1e300]:
        with pytest.raises(TaskDataError, match=r"rows.csv .* \(line 4\)"):
            read([1, 2, value], **number)
    assert len(set(read([1_700_000_000 + 3_600 * i for i in range(900)], **number))) == 900
    with pytest.raises(TaskDataError) as caught:
        read([1_700_000_000 + i for i in range(10)], **number)
    assert "subtract" in (caught.value.hint or "")
    with pytest.raises(TaskDataError, match=r"data has 7 \(row 1 and 7 more rows\)"):
        read([7] * 8, SIGNS, place=SourceLocation("data"))


def losses(kind, outputs, labels):
    counts = torch.ones(len(labels), dtype=torch.int64)
    return kind.loss(PassOutputs(outputs), Batch({}, counts, None, labels, len(labels)))


def test_losses_answers_and_metrics(make_task, numbers):
    classes, regression = kind_of(make_task(metrics=("accuracy", "f1"))), kind_of(numbers)
    outputs, labels = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]]), torch.tensor([1, 1, 0])
    loss = losses(classes, outputs, labels)
    torch.testing.assert_close(loss, functional.cross_entropy(outputs, labels, reduction="none"))
    assert (classes.model.num_outputs, classes.answers(outputs).tolist()[:2]) == (2, [1, 0])
    outputs = torch.tensor([[1.0], [-2.0]])
    assert losses(regression, outputs, torch.tensor([0.5, 0.0])).tolist() == [0.25, 4.0]
    assert (regression.model.num_outputs, regression.answers(outputs).tolist()) == (1, [1.0, -2.0])
    assert regression.answers(outputs[:1].bfloat16()).dtype == np.float64
    metrics = classes.measure(np.array([1, 0]), np.array([1, 1]))
    assert list(metrics.items()) == [("accuracy", 0.5), ("f1", pytest.approx(2 / 3))]
    for said, true in (([1, 0], [1]), ([], [])):
        with pytest.raises(ValueError, match=f"{len(said)} for {len(true)}"):
            classes.measure(np.array(said), np.array(true))
    assert (classes.constants(np.array([1, 1, 0])), classes.show(1)) == ([1, 0], "positive")
    assert (regression.constants(np.array([1.0, 2.0, 6.0])), regression.show(1 / 3)) == ([3.0, 2.0], "0.3333")
    # It is served so; cut where another task cuts, it would be scored on less than it answers by.
    assert classes.asked_as(replace(classes.task, max_length=999)).max_length == 999


def test_declarations_that_contradict_themselves(make_task):
    for change, words in [
        ({"labels": ("only",)}, "at least two labels"),
        ({"labels": ("a", "a")}, "must differ"),
        ({"kind": "regression", "metrics": ("mse",)}, "`labels` must be left out for kind: regression"),
    ]:
        assert words in broken_laws(make_task(**change))


def test_numbers_that_a_head_hardly_learns_are_warned_of(numbers):
    for labels, has_bias, said in [
        ([3.5, 3.5, 3.5], True, "3.5"),
        ([1990.0, 2000.0, 2010.0], False, "no bias"),
        ([1990.0, 2000.0, 2010.0], True, None),
        ([1.0, 2.0, 3.0], False, None),
    ]:
        values = np.array(labels, np.float32)
        kind = kind_of(replace(numbers, standardized=True)).fitted(values, has_bias=has_bias)
        warnings = list(kind.warnings({"train": Rows([""] * len(values), None, values)}, {}))
        assert [said in warning for warning in warnings] == [True] * (said is not None)
