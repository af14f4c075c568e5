"""Requests as callers give them: rows of texts, and what is none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from loraxs_search.errors import UsageError
from loraxs_search.tasks.questions import question_rows
from loraxs_search.tasks.rows import shown_question


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


def test_a_table_is_no_list_of_its_column_names():
    table = pd.DataFrame({"sentence": ["one", "two"]})
    with pytest.raises(UsageError, match="DataFrame") as error:
        question_rows(table)
    assert 'df["sentence"]' in str(error.value.hint)
    assert question_rows(table["sentence"]) == [("one",), ("two",)]


def test_people_read_columns_and_options_side_by_side():
    assert shown_question(("Which?", ["a", 2])) == "Which? | a | 2"
