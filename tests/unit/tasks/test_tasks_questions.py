"""Requests as callers give them, files of rows and standard input; and what is none of these."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from loraxs_search.errors import UsageError
from loraxs_search.tasks.files import question_rows, read_questions


def test_a_row_is_a_text_or_a_tuple_of_texts():
    assert question_rows("one") == [("one",)]
    assert question_rows(["one", ("two", "three")]) == [("one",), ("two", "three")]
    assert question_rows(np.array(["one", "two"])) == [("one",), ("two",)]
    assert question_rows([]) == []
    assert question_rows([3, None, ["a", "b"]]) == [(3,), (None,), (["a", "b"],)]  # a task's kind knows what is wrong


def test_what_is_no_list_is_refused():
    for texts in [3, {"text": "one"}, b"one", {"one", "two"}, pa.table({"sentence": ["one"]})]:
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


def test_a_table_without_the_column_is_refused():
    for columns, message, hint in [
        (["Sentence", "id"], "the column sentence, which the task reads, but has: Sentence, id", "rename the column S"),
        (["a", 3], "the column sentence, which the task reads, but has: a, 3", "trained on"),
        (["sentence", "sentence"], "but has it twice", "trained on"),
    ]:
        with pytest.raises(UsageError, match=message) as error:
            question_rows(pd.DataFrame([["one", "two"]], columns=columns), ("sentence",))
        assert hint in str(error.value.hint)


def test_a_dict_gives_the_columns_of_the_task():
    rows = [{"second": "b", "n": 1, "first": "a"}, ("c", "d")]
    assert question_rows(rows, ("first", "second")) == [("a", "b"), ("c", "d")]
    with pytest.raises(UsageError, match="column second"):
        question_rows([{"first": "a"}], ("first", "second"))


# ---- files and standard input ----------------------------------------------------------------------------------------
NAMED = "is read as the name of its column"


def piped(content):
    raw = content if isinstance(content, bytes) else content.encode()
    return [text for (text,) in read_questions("-", ("text",), piped=raw)[0]]


def test_only_line_ends_end_a_line(tmp_path):
    """Others, that Python's `splitlines` knows, are in texts that people copy from the web."""
    texts = ["a\x0cb \x85 c\u2028d", "so so"]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    assert read_questions(str(tmp_path / "texts.txt"), ("text",))[0] == [(text,) for text in texts]


def test_standard_input_may_have_columns(caplog):
    for content in [
        "text\tn\nso so\t1\n",
        'n;"text"\n1;so so\n',
        '{"text": "so so", "n": 1}\n',
        '[{"text": "so so",\n"n": 1}]',
        "so so\n",
        'text\n"so so"\n',
        '[{"review": "so so"}]',
    ]:
        caplog.clear()
        assert piped(content) == ["so so"]
        assert (NAMED in caplog.text) == ("review" in content)


def test_standard_input_of_other_columns_is_refused():
    for content in ['{"txt": "so", "n": 1}\n', "txt,n\nso so,1\nfine,2\n", "txt\tn\nso\t1\nfine\t2\n"]:
        with pytest.raises(UsageError, match="must have the column text") as caught:
            piped(content)
        assert "rename the column txt to text" in caught.value.hint


def test_standard_input_is_lines_of_text_unless_it_begins_with_a_name(caplog):
    for content, rows in [
        ("review\nso so\nfine\n", ["so so", "fine"]),
        ('"Review"\n"so, so"\nfine\n', ["so, so", "fine"]),
        ('review\nso, so\n"fine", he said\n', ["so, so", '"fine", he said']),
        ("我很喜欢这部很长的电影,真好看\n这部电影不好看也很无聊,不要看\n", None),
        ("so,so\n", None),
        ("so\rso\nfine\r\nok\r\n\r\r\n", ["so\rso", "fine", "ok"]),
        ("so\rfine", ["so", "fine"]),
    ]:
        caplog.clear()
        assert piped(content) == (rows or content.splitlines())
        assert (NAMED in caplog.text) == ("eview" in content)


def test_standard_input_that_cannot_be_read():
    for content in [b"", b"\n\n", b"caf\xe9 \x81\n", b'{"text": "so"}\nso\n', b"s\0o\n"]:
        with pytest.raises(UsageError, match="standard input"):
            piped(content)


def test_the_header_of_a_file_of_one_column_may_be_a_text(tmp_path, caplog):
    (tmp_path / "rows.csv").write_text("so so\nfine\n")
    assert read_questions(str(tmp_path / "rows.csv"), ("text",))[0] == [("fine",)]
    assert NAMED in caplog.text


def test_a_file_that_cannot_be_read_is_told_with_its_place(tmp_path):
    for name, content, message in [
        (
            "a.csv",
            "txt,label\nso,1\n",
            "must have the column text, which the task reads, but has: txt, label.\n\nhint: rename the column txt to",
        ),
        ("a.csv", "text,text\nso,so\n", "`--file` must name each column once, but its header has 'text' twice: "),
        ("a.csv", 'n,text\n1,so\n"two\nlines"\n', "a field for each of the 2 columns, but line 3 has 1: "),
        ("a.csv", 'text,n\n"so,1\n', "`--file` must be separated values, but the row in line 2 cannot be read"),
        (
            "a.csv",
            "review,stars\nso,1\n",
            "but has: review, stars.\n\nhint: rename the column of the texts to text, or",
        ),
        ("a.csv", "", "`--file` must have a row at least, but "),
        ("a.txt", "so\n".encode("utf-16-le"), "line 1 has the byte 0x00: "),
        ("a.md", "so\n", "`--file` must end in one of .txt, .json, .jsonl, .csv, .tsv, .parquet"),
        ("a.txt", "\n \n", "`--file` must have a row at least"),
    ]:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UsageError) as caught:
            read_questions(str(tmp_path / name), ("text",))
        assert message in f"{caught.value.message}\n\nhint: {caught.value.hint}"


def test_what_is_no_file_is_refused():
    for name, message in [
        ("x.txt", "there is no x.txt"),
        ("", "there is no ''"),
        (".", "is a folder"),
        ("s3://a", "s3://a"),
    ]:
        with pytest.raises(UsageError) as caught:
            read_questions(name, ("text",))
        assert message in caught.value.message
        assert ("download it" in caught.value.hint) == (name == "s3://a")
