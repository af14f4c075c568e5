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
from loraxs_search.tasks.kinds.labelled import Regression, SequenceClassification
from loraxs_search.tasks.prepared import prepare
from loraxs_search.tasks.rows import Columns, Rows, SourceLocation

PLACE = SourceLocation("rows.csv", lines=range(2, 1000))


def read_numbers(values, task):
    return Regression(task).read_labels(Columns(["label"], {"label": values}), PLACE)


@pytest.fixture
def read(make_task):
    """Read labels of a task that has these names; the first row stands in line 2."""

    def ids(values, names, stored=None):
        columns = Columns(["text", "label"], {"text": ["x"] * len(values), "label": values}, stored_names=stored)
        return SequenceClassification(make_task(labels=names)).read(columns, PLACE).labels.tolist()

    return ids


def test_labels_by_name_or_id(read):
    for stored, names, ids in [
        (["negative", "positive"], ("negative", "positive"), [0, 1]),
        ([" negative", "1", 0, 1.0], ("negative", "positive"), [0, 1, 0, 1]),
        (["0.0", "1.0", "1."], ("negative", "positive"), [0, 1, 1]),  # what pandas writes once a label was missing
        ([False, "TRUE"], ("negative", "positive"), [0, 1]),
        ([False, True], ("true", "false"), [1, 0]),
        (["1", "5.0", 2.0], ("1", "2", "3", "4", "5"), [0, 4, 1]),
        ([-1, 1], ("-1", "1"), [0, 1]),
        ([0.5, 1], ("0.5", "1.0"), [0, 1]),
        (["1", "1.0"], ("1", "1.0"), [0, 1]),
        ([1, "none"], ("1", "2", "none"), [0, 2]),
        (["cafe\u0301", "caf\u00e9"], ("tea", "caf\u00e9"), [1, 1]),
        (["007", 8, "8.0"], ("007", "8"), [0, 1, 1]),
    ]:
        assert read(stored, names) == ids


def test_where_a_name_is_a_number_numbers_are_names_and_never_ids(read):
    for value, names in [
        (0, ("1", "2", "3", "4", "5")),
        (False, ("1", "2", "3", "4", "5")),
        (1, ("1", "1.0")),
        (7, ("007", "8")),
        ("007", ("7", "8")),
        (1, ("00501", "02139")),
    ]:
        with pytest.raises(TaskDataError) as caught:
            read([value], names)
        assert f"must be one of {', '.join(names)}, but rows.csv has {value!r} (line 2)." in str(caught.value)


def test_ids_that_the_data_themselves_name_are_ids(read):
    assert read([0, 1], ("bad", "good"), ["0", "1"]) == [0, 1]
    assert read([0, 1], ("1", "2"), ["2", "1"]) == [1, 0]
    with pytest.raises(TaskDataError, match=r"has 2 \(line 3\)"):
        read([0, 2], ("bad", "good"), ["bad", "good"])


def test_names_of_the_data_of_which_the_task_has_none_are_refused(read):
    with pytest.raises(TaskDataError, match=r"neg, pos.*good, bad"):
        read([0, 1], ("good", "bad"), ["neg", "pos"])


def test_names_of_the_data_that_are_some_of_the_tasks_decide(read):
    for names, stored, values, ids in [
        (("negative", "positive"), ["Positive", "Negative"], [0, 1], [1, 0]),
        (("a", "b"), ["c", "a", "b"], [1, 2], [0, 1]),
        (("a", "b", "c"), ["b", "a"], [0, 1], [1, 0]),
        (("negative", "neutral", "positive"), ["neg", "neutral", "pos"], [0, 1, 2], [0, 1, 2]),
    ]:
        assert read(values, names, stored) == ids


def test_ids_of_names_that_the_task_lacks_are_refused_where_names_decide(read):
    with pytest.raises(TaskDataError, match=r"has 0 \(line 2\)"):
        read([0, 1], ("a", "b"), ["c", "a", "b"])
    with pytest.raises(TaskDataError, match=r"a, b \(.* c, a, b\)"):
        read([0, 1], ("a", "b"), ["c", "a", "b"])


def test_what_is_no_label_is_told_with_its_line_and_what_is_allowed(read):
    for value in [2, "neutral", None, float("nan"), [1], "1e0"]:
        with pytest.raises(TaskDataError) as caught:
            read([0, 1, 0, value, 1], ("negative", "positive"))
        message = str(caught.value)
        assert "must be one of negative, positive or an id in 0..1, but rows.csv has" in message
        assert message.endswith(" (line 5).")
        assert len(message) < 300


def test_every_different_bad_label_is_told_with_its_first_line(read):
    stored = [0, "positiv", 1, "", "positiv", "Positive", "positiv"]
    with pytest.raises(TaskDataError, match=r"has 'positiv' \(line 3 and 2 more rows\), '' \(line 5\), 'Positive' "):
        read(stored, ("negative", "positive"))
    with pytest.raises(TaskDataError, match=r"2 \(line 2\).*, 6 \(line 6\) and 4 other values\.$"):
        read(list(range(2, 11)), ("negative", "positive"))


def test_a_label_that_is_nearly_one_is_said_first(read):
    names = ("negative", "positive")
    for value in ("postive", "POSITIVE", " Positive "):
        with pytest.raises(TaskDataError, match=r"positive\? `label` .*negative, pos"):
            read([0, value], names)
    with pytest.raises(TaskDataError, match=r"positive by 'positiv', negative by 'NEGATIVE'\? `label`"):
        read(["positiv", "NEGATIVE", "other", "positiv"], names)
    with pytest.raises(TaskDataError) as caught:  # two are as near, and of 500 labels some are named
        read(["label-5"], [f"label-{number:03d}" for number in range(500)])
    message = str(caught.value)
    assert "Did you mean" not in message
    assert "label-019 and 480 more or an id in 0..499, but rows.csv has 'label-5' (line 2)" in message


def test_regression_labels_must_be_finite_numbers(make_task):
    for value in [None, "many", True, float("inf"), 1e300]:
        task = make_task(kind="regression", labels=(), metric="mse", metrics=("mse",))
        assert read_numbers([1, "2.5", "1e-1"], task).tolist() == [1.0, 2.5, np.float32(0.1)]
        with pytest.raises(TaskDataError, match=r"rows.csv .* \(line 4\)"):
            read_numbers([1, 2, value], task)


def test_numbers_that_float32_cannot_tell_apart_are_refused(make_task):
    task = make_task(kind="regression", labels=(), metric="mse", metrics=("mse",))
    assert len(set(read_numbers([1_700_000_000 + 3_600 * i for i in range(900)], task).tolist())) == 900
    with pytest.raises(TaskDataError) as caught:
        read_numbers([1_700_000_000 + i for i in range(10)], task)
    assert "subtract" in (caught.value.hint or "")


def test_rows_without_lines_are_counted_from_one(make_task, tokenizer, rows, tmp_path):
    import datasets

    datasets.Dataset.from_list([{**row, "label": 7} for row in rows(8)]).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(TaskDataError, match=r"d\.parquet has 7 \(row 1 and 7 more rows\)"):
        task = make_task()
        prepare(make_task(source=type(task.source)(data_files={"train": str(tmp_path / "d.parquet")})), tokenizer)


@pytest.fixture
def classes(make_task):
    return make_task(metrics=("accuracy", "f1"))


@pytest.fixture
def numbers(make_task):
    return make_task(kind="regression", labels=(), metric="pearson", metrics=("pearson", "mse"))


def losses(kind, outputs, labels):
    counts = torch.ones(len(labels), dtype=torch.int64)
    return kind.loss(PassOutputs(outputs), Batch({}, counts, None, labels, len(labels)))


def test_classification_loss_is_cross_entropy_per_row(classes):
    kind = kind_of(classes)
    outputs, labels = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]]), torch.tensor([1, 1, 0])
    loss = losses(kind, outputs, labels)
    assert loss.shape == (3,)
    torch.testing.assert_close(loss.mean(), functional.cross_entropy(outputs, labels))
    assert kind.model.num_outputs == 2
    assert kind.answers(outputs).tolist()[:2] == [1, 0]


def test_regression_loss_is_squared_error_per_row(numbers):
    kind = kind_of(numbers)
    outputs, labels = torch.tensor([[1.0], [-2.0]]), torch.tensor([0.5, 0.0])
    assert losses(kind, outputs, labels).tolist() == [0.25, 4.0]
    assert kind.model.num_outputs == 1
    assert kind.answers(outputs).tolist() == [1.0, -2.0]
    assert kind.answers(outputs[:1].bfloat16()).dtype == np.float64


def test_metrics_come_in_the_tasks_order(classes, numbers):
    metrics = kind_of(classes).measure(np.array([1, 0]), np.array([1, 1]))
    assert list(metrics.items()) == [("accuracy", 0.5), ("f1", pytest.approx(2 / 3))]
    assert list(kind_of(numbers).measure(np.array([1.0, 2.0]), np.array([2.0, 4.0]))) == ["pearson", "mse"]


def test_predictions_and_labels_must_be_of_one_length(classes):
    with pytest.raises(ValueError, match="2 for 1"):
        kind_of(classes).measure(np.array([1, 0]), np.array([1]))
    with pytest.raises(ValueError, match="0 for 0"):
        kind_of(classes).measure(np.array([]), np.array([]))


def test_the_likeliest_constant_comes_first_and_reads_as_people_write_it(classes, numbers):
    assert kind_of(classes).constants(np.array([1, 1, 0])) == [1, 0]
    assert kind_of(classes).show(1) == "positive"
    assert kind_of(numbers).constants(np.array([1.0, 2.0, 6.0])) == [3.0, 2.0]
    assert kind_of(numbers).show(1 / 3) == "0.3333"


def test_declarations_that_contradict_themselves(classes):
    for change, words in [
        ({"labels": ("only",)}, "at least two labels"),
        ({"labels": ("a", "a")}, "must differ"),
        ({"kind": "regression", "metrics": ("mse",)}, "`labels` must be left out for kind: regression"),
    ]:
        assert words in broken_laws(replace(classes, **change))


def test_an_adapter_reads_as_much_of_a_text_as_in_training(classes):
    """It is served so; cut where another task cuts, it would be scored on less than it answers by."""
    assert kind_of(classes).asked_as(replace(classes, max_length=999)).max_length == 999
    assert kind_of(classes).asked_as(classes) == classes


def test_numbers_that_a_head_hardly_learns_are_warned_of(numbers):
    for labels, has_bias, said in [
        ([3.5, 3.5, 3.5], True, "3.5"),
        ([1990.0, 2000.0, 2010.0], False, "no bias"),
        ([1990.0, 2000.0, 2010.0], True, None),
        ([1.0, 2.0, 3.0], False, None),
    ]:
        values = np.array(labels, np.float32)
        kind = kind_of(replace(numbers, standardized=True)).fitted(values, has_bias=has_bias)
        place = SourceLocation("rows.csv", range(2, 2 + len(values)))
        warnings = list(kind.warnings({"train": Rows([""] * len(values), None, values, place=place)}, {}))
        assert [said in warning for warning in warnings] == [True] * (said is not None)
