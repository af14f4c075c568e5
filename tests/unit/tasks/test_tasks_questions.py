"""Requests as callers give them: rows of texts, and what is none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from loraxs_search.errors import UsageError
from loraxs_search.tasks.questions import question_rows


def test_a_row_is_a_text_or_a_tuple_of_texts():
    assert question_rows("one") == [("one",)]
    assert question_rows(["one", ("two", "three")]) == [("one",), ("two", "three")]
    assert question_rows(np.array(["one", "two"])) == [("one",), ("two",)]
    assert question_rows([]) == []
    assert question_rows([3, None, ["a", "b"]]) == [(3,), (None,), (["a", "b"],)]  # a task's kind knows what is wrong


@pytest.mark.parametrize("texts", [None, 3, {"text": "one"}, b"one", {"one", "two"}, (text for text in "ab")])
def test_what_is_no_list_is_refused(texts):
    with pytest.raises(UsageError, match="`texts`") as error:
        question_rows(texts)
    assert type(texts).__name__ in str(error.value)
    assert "as a tuple" in str(error.value.hint)


def test_a_table_of_pandas_gives_the_columns_of_the_task_in_their_order():
    table = pd.DataFrame(
        {
            "second": ["b", pd.NA, None],
            "id": [1, 2, 3],
            "first": ["a", float("nan"), "c"],
            "listed": [np.array(["x", "y"]), ["x"], "x | y"],
        },
        index=[7, 7, 3],
    )
    assert question_rows(table, ("first", "second")) == [("a", "b"), (None, None), ("c", None)]
    assert question_rows(table, ("listed",)) == [(["x", "y"],), (["x"],), ("x | y",)]
    assert question_rows(table, ("id",)) == [(1,), (2,), (3,)]
    assert question_rows(table[:0], ("first",)) == []
    assert question_rows(table["first"]) == [("a",), (table["first"].iloc[1],), ("c",)]


@pytest.mark.parametrize(
    ("columns", "message", "hint"),
    [
        (["Sentence", "id"], "the column sentence, which the task reads, but has: Sentence, id", "rename the column S"),
        (["a", 3], "the column sentence, which the task reads, but has: a, 3", "trained on"),
        (["sentence", "sentence"], "but has it twice", "trained on"),
    ],
)
def test_a_table_without_the_column_is_refused(columns, message, hint):
    with pytest.raises(UsageError, match=message) as error:
        question_rows(pd.DataFrame([["one", "two"]], columns=columns), ("sentence",))
    assert hint in str(error.value.hint)


def test_a_table_of_others_is_no_list_of_its_column_names():
    with pytest.raises(UsageError, match="Table") as error:
        question_rows(pa.table({"sentence": ["one"]}), ("sentence",))
    assert "a pandas DataFrame" in str(error.value.hint)
