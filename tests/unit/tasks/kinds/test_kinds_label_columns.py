"""Labels as files have them: names, ids, numbers that are names, and every one that does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from loraxs_search.errors import TaskDataError
from loraxs_search.tasks.kinds.labelled import Regression, class_ids
from loraxs_search.tasks.prepared import prepare
from loraxs_search.tasks.rows import Columns, SourceLocation

PLACE = SourceLocation("rows.csv", lines=range(2, 1000))


def numbers(values, task):
    return Regression(task).read_labels(Columns(["label"], {"label": values}), PLACE)


@pytest.fixture
def read(make_task):
    """Read labels of a task that has these names; the first row stands in line 2."""

    def ids(values, names, stored=None):
        return class_ids(values, make_task(labels=names), PLACE, stored).tolist()

    return ids


@pytest.mark.parametrize(
    ("stored", "names", "ids"),
    [
        (["negative", "positive"], ("negative", "positive"), [0, 1]),
        ([" negative", "positive "], ("negative", "positive"), [0, 1]),
        ([0, 1], ("negative", "positive"), [0, 1]),
        ([0.0, 1.0], ("negative", "positive"), [0, 1]),
        (["0", "1"], ("negative", "positive"), [0, 1]),
        (["0.0", "1.0", "1."], ("negative", "positive"), [0, 1, 1]),  # what pandas writes once a label was missing
        ([False, True], ("negative", "positive"), [0, 1]),
        (["False", "TRUE"], ("negative", "positive"), [0, 1]),
        ([False, True], ("true", "false"), [1, 0]),
        ([0, 1], ("0", "1"), [0, 1]),
        ([1, 5], ("1", "2", "3", "4", "5"), [0, 4]),
        (["1", "5.0", 2.0], ("1", "2", "3", "4", "5"), [0, 4, 1]),
        ([-1, 1], ("-1", "1"), [0, 1]),
        (["-1.0", 1.0], ("-1", "1"), [0, 1]),
        ([0.5, 1], ("0.5", "1.0"), [0, 1]),
        (["1", "1.0"], ("1", "1.0"), [0, 1]),
        ([1, "none"], ("1", "2", "none"), [0, 2]),
        (["cafe\u0301", "caf\u00e9"], ("tea", "caf\u00e9"), [1, 1]),
        (["caf\u00e9"], ("tea", "cafe\u0301"), [1]),
        (["007", 8, "8.0"], ("007", "8"), [0, 1, 1]),
    ],
)
def test_labels_by_name_or_id(read, stored, names, ids):
    assert read(stored, names) == ids


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (0, ("1", "2", "3", "4", "5")),
        ("0", ("1", "2", "3", "4", "5")),
        (0.0, ("1", "2", "3", "4", "5")),
        (False, ("1", "2", "3", "4", "5")),
        (0, ("-1", "1")),
        (2, ("1", "3", "none")),
        (1, ("1", "1.0")),
        (1.5, ("1", "2")),
        (7, ("007", "8")),
        ("007", ("7", "8")),
        (1, ("00501", "02139")),
    ],
)
def test_where_a_name_is_a_number_numbers_are_names_and_never_ids(read, value, names):
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


@pytest.mark.parametrize(
    ("names", "stored", "values", "ids"),
    [
        (("negative", "positive"), ["Positive", "Negative"], [0, 1], [1, 0]),
        (("a", "b"), ["c", "a", "b"], [1, 2], [0, 1]),
        (("a", "b", "c"), ["b", "a"], [0, 1], [1, 0]),
        (("negative", "neutral", "positive"), ["neg", "neutral", "pos"], [0, 1, 2], [0, 1, 2]),
    ],
)
def test_names_of_the_data_that_are_some_of_the_tasks_decide(read, names, stored, values, ids):
    assert read(values, names, stored) == ids


def test_ids_of_names_that_the_task_lacks_are_refused_where_names_decide(read):
    with pytest.raises(TaskDataError, match=r"has 0 \(line 2\)"):
        read([0, 1], ("a", "b"), ["c", "a", "b"])
    with pytest.raises(TaskDataError, match=r"a, b \(.* c, a, b\)"):
        read([0, 1], ("a", "b"), ["c", "a", "b"])


def test_numbers_that_float32_cannot_tell_apart_are_refused(make_task):
    task = make_task(kind="regression", labels=(), metric="mse", metrics=("mse",))
    assert len(set(numbers([1_700_000_000 + 3_600 * i for i in range(1000)], task).tolist())) == 1000
    assert len(set(numbers([0.1, 0.1, 0.1], task).tolist())) == 1
    with pytest.raises(TaskDataError) as caught:
        numbers([1_700_000_000 + i for i in range(10)], task)
    assert "subtract" in (caught.value.hint or "")


@pytest.mark.parametrize("value", [2, -1, "neutral", 0.5, None, float("nan"), "", [1], 10**400, "1e0", "\u0661", "1_0"])
def test_what_is_no_label_is_told_with_its_line_and_what_is_allowed(read, value):
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


@pytest.mark.parametrize("value", [None, float("nan"), "many", True, "True", float("inf"), 1e300, 10**400])
def test_regression_labels_must_be_finite_numbers(make_task, value):
    task = make_task(kind="regression", labels=(), metric="mse", metrics=("mse",))
    assert numbers([1, "2.5", "1e-1"], task).tolist() == [1.0, 2.5, np.float32(0.1)]
    with pytest.raises(TaskDataError, match=r"rows.csv .* \(line 4\)"):
        numbers([1, 2, value], task)


def test_rows_without_lines_are_counted_from_one(make_task, tokenizer, rows, tmp_path):
    import datasets

    datasets.Dataset.from_list([{**row, "label": 7} for row in rows(8)]).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(TaskDataError, match=r"d\.parquet has 7 \(row 1 and 7 more rows\)"):
        task = make_task()
        prepare(make_task(source=type(task.source)(data_files={"train": str(tmp_path / "d.parquet")})), tokenizer)
