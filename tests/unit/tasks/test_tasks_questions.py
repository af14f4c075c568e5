"""Requests as callers give them, files of rows and standard input; and what is none of these."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from loraxs_search.errors import UsageError
from loraxs_search.tasks.files import question_rows, read_questions


def test_rows_are_texts_tuples_dicts_or_those_of_a_table():
    table = pd.DataFrame(
        {
            "second": ["b", pd.NA, None],
            "id": [1, 2, 3],
            "first": ["a", float("nan"), "c"],
            "listed": [np.array(["x", "y"]), ["x"], "x | y"],
        },
        index=[7, 7, 3],
    )
    for texts, columns, rows in [
        ("one", (), [("one",)]),
        (["one", ("two", "three")], (), [("one",), ("two", "three")]),
        (np.array(["one", "two"]), (), [("one",), ("two",)]),
        ([3, None, ["a", "b"]], (), [(3,), (None,), (["a", "b"],)]),  # a task's kind knows what is wrong
        (table, ("first", "second"), [("a", "b"), (None, None), ("c", None)]),
        (table, ("listed", "id"), [(["x", "y"], 1), (["x"], 2), ("x | y", 3)]),
        (table[:0], ("first",), []),
        ([{"second": "b", "n": 1, "first": "a"}, ("c", "d")], ("first", "second"), [("a", "b"), ("c", "d")]),
    ]:
        assert question_rows(texts, columns) == rows


def test_what_is_no_list_or_lacks_a_column_is_refused():
    for texts in [3, {"text": "one"}, b"one", {"one", "two"}, pa.table({"sentence": ["one"]})]:
        with pytest.raises(UsageError, match=type(texts).__name__) as error:
            question_rows(texts)
        assert "as a tuple" in str(error.value.hint)
    for columns, message, hint in [
        (["Sentence", "id"], "the column sentence, which the task reads, but has: Sentence, id", "rename the column S"),
        (["sentence", "sentence"], "but has it twice", "trained on"),
    ]:
        with pytest.raises(UsageError, match=message) as error:
            question_rows(pd.DataFrame([["one", "two"]], columns=columns), ("sentence",))
        assert hint in str(error.value.hint)
    with pytest.raises(UsageError, match="column second"):
        question_rows([{"first": "a"}], ("first", "second"))


# ---- files and standard input ----------------------------------------------------------------------------------------
NAMED = "is read as the name of its column"


def piped(content):
    raw = content if isinstance(content, bytes) else content.encode()
    return [text for (text,) in read_questions("-", ("text",), piped=raw)[0]]


def test_standard_input_is_lines_of_text_or_what_its_first_line_shows(caplog):
    chinese = "我很喜欢这部很长的电影,真好看\n这部电影不好看也很无聊,不要看"
    for content, rows in [
        ("text\tn\nso so\t1\n", ["so so"]),
        ('{"text": "so so", "n": 1}\n', ["so so"]),
        ('text\n"so so"\n', ["so so"]),
        ('[{"review": "so so"}]', ["so so"]),
        ('"Review"\n"so, so"\nfine\n', ["so, so", "fine"]),
        ('\nreview\nso, so\n"fine", he said\n', ["so, so", '"fine", he said']),
        (chinese, chinese.split("\n")),
        ("so,so\n", ["so,so"]),
        ("so\rso\nfine\r\nok\r\n\r\r\n", ["so\rso", "fine", "ok"]),
        ("a\x0cb \x85 c\u2028d\nso so", ["a\x0cb \x85 c\u2028d", "so so"]),  # only line ends end a line
    ]:
        caplog.clear()
        assert piped(content) == rows
        assert (NAMED in caplog.text) == ("eview" in content)


def test_standard_input_that_cannot_be_read():
    for content in ['{"txt": "so", "n": 1}\n', "txt,n\nso so,1\nfine,2\n"]:
        with pytest.raises(UsageError, match="must have the column text") as caught:
            piped(content)
        assert "rename the column txt to text" in caught.value.hint
    for content in [b"", b"caf\xe9 \x81\n", b'{"text": "so"}\nso\n', b"s\0o\n"]:
        with pytest.raises(UsageError, match="standard input"):
            piped(content)


def test_a_file_that_cannot_be_read_is_told_with_its_place(tmp_path, caplog):
    for name, content, message in [
        ("a.csv", "txt,label\nso,1\n", "which the task reads, but has: txt, label.\n\nhint: rename the column txt to"),
        ("a.csv", "text,text\nso,so\n", "`--file` must name each column once, but its header has 'text' twice: "),
        ("a.csv", "review,stars\nso,1\n", "review, stars.\n\nhint: rename the column of the texts to text, or"),
        ("a.csv", "", "`--file` must have a row at least, but "),
        ("a.md", "so\n", "`--file` must end in one of .txt, .json, .jsonl, .csv, .tsv, .parquet"),
        ("x.txt", None, "there is no x.txt"),
        (".", None, "is a folder"),
        ("s3://a", None, "hint: download it"),
    ]:
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(UsageError) as caught:
            read_questions(name if content is None else str(tmp_path / name), ("text",))
        assert message in f"{caught.value.message}\n\nhint: {caught.value.hint}"
    (tmp_path / "rows.csv").write_text("so so\nfine\n")
    assert read_questions(str(tmp_path / "rows.csv"), ("text",))[0] == [("fine",)]
    assert NAMED in caplog.text, "the header of a file of one column may be a text"
