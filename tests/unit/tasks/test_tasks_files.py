"""Files as people have them: each fault is told with its line, and what is clear is taken."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from loraxs_search.errors import TaskDataError, UsageError
from loraxs_search.records.task import DataSource
from loraxs_search.scaffold.roles import read_table
from loraxs_search.tasks.files import read_columns, read_questions
from loraxs_search.tasks.prepared import load_data
from loraxs_search.tasks.rows import MalformedFileError, question_rows

ROWS = "".join(f"w{i},{i % 2}\n" for i in range(30))
CSV = f"text,label\n{ROWS}"


def in_parquet(table: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


TABLE = pa.table({"text": [f"w{i}" for i in range(30)], "label": [0, 1] * 15})
PARQUET = in_parquet(TABLE, compression="none", use_dictionary=False)


@pytest.fixture
def load(make_task, tmp_path):
    """Load a task from one file of these bytes, in a folder of its own."""

    def rows(name, content):
        path = tmp_path / "files" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        data = load_data(replace(make_task(), source=DataSource(data_files={"train": str(path)}))).values()
        return sorted((text, int(label)) for it in data for text, label in zip(it.texts, it.labels, strict=True))

    return rows


def test_what_is_clear_is_taken(load):
    for name, content in [
        ("d.csv", "\ufeff" + CSV),
        ("d.csv", CSV.replace("\n", "\r")),
        ("d.csv", CSV.replace("w3,", "\n  \n,\nw3,")),
        ("d.csv", "text,label,x,x\n" + ROWS.replace("\n", ",a,b\n")),
        ("d.parquet", PARQUET),
        ("d.json", "[" + ",\n ".join(f'{{"text": "w{i}", "label": {i % 2}}}' for i in range(30)) + "]\n"),
        ("d.jsonl", "".join(f'{{"text": "w{i}", "label": {i % 2}}}\n\n' for i in range(30))),
        ("d.csv.zst", pa.compress(CSV.encode(), codec="zstd", asbytes=True)),
        *((name, CSV.replace(",", mark)) for name, mark in (("d.csv", ";"), ("d.tsv", ","), ("d.csv", "|"))),
        ("D.CSV.GZ", gzip.compress(CSV.encode(), mtime=0)),
    ]:
        assert load(name, content) == sorted((f"w{i}", i % 2) for i in range(30))


def test_what_is_in_the_lines_of_a_text_is_its_own(load):
    """Lines that are rows by themselves have the label of a row."""
    turned = "".join(f"{i % 2}\tw{i}\n" for i in range(30))
    for text in ("Tom,\nso, so\nyours, Ann", "for 10,000\nonly", 'say "so"'):
        quoted = text.replace('"', '""')
        assert (text, 1) in load("d.csv", f'{CSV}"{quoted}",1\n')
        assert (text, 1) in load("d.tsv", f'label\ttext\n{turned}1\t"{quoted}"\n')
    # One of many texts of several lines may look like rows: whoever wrote the others has quoted on purpose.
    others = "".join(f'"{i} one\nend",1\n' for i in range(20))
    assert ("so,1\nend", 0) in load("d.csv", f'{CSV}{others}"so,1\nend",0\n')


def test_values_stay_as_they_are_written(load):
    read = read_columns(Path("d.csv"), b"text,note\na\nb,x\n", ["text"], ["note"])
    assert read.values == {"text": ["a", "b"], "note": ["", "x"]}, "a row may end before what nobody needs"
    assert {("NA", 0), ("None", 1), ("123", 0)} <= set(load("d.csv", CSV + "NA,0\nNone,1\n123,0\n"))
    assert ("x" * 200_000, 1) in load("d.csv", CSV + "x" * 200_000 + ",1\n"), "longer than csv takes by default"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_what_excel_writes_is_read_and_said(tmp_path, load, caplog, encoding):
    """By a task, by `init` and by `predict` alike."""
    content = (CSV + "\u201cfive \u20ac\u201d,1\n").encode(encoding)
    assert ("\u201cfive \u20ac\u201d", 1) in load("d.csv", content)
    assert "is read as" in caplog.text
    (tmp_path / "d.csv").write_bytes(content)
    read = read_table(tmp_path / "d.csv")
    assert ("\u201cfive \u20ac\u201d" in read.columns["text"].values, "instead of UTF-8" in read.remark) == (True, True)
    assert ("\u201cfive \u20ac\u201d",) in read_questions(str(tmp_path / "d.csv"), ["text"])[0]


FAULTS = [
    ("d.csv", CSV.encode() + b"caf\x81,1\n", r"must be text in UTF-8, but line 32 has the byte 0x81"),
    ("d.csv", "text,label,label\n" + ROWS.replace("\n", ",1\n"), r"its header has 'label' twice"),
    ("d.csv", CSV + "a, b,1\nc,0\nd\n", r"a field for each of the 2 columns, but line 32 has 3, line 34 has 1\."),
    ("d.csv", CSV + '"a\nb",1\n"never,1\nc,0\n', r"the row in line 34 cannot be read: unexpected end"),
    ("d.csv", CSV + '"bad,1\nend",0\n', r"the one in line 32 continues to line 33"),
    ("d.csv", "\n\n" + CSV + ",1\n", r"each row must have text, but .* has '' \(line 34\)"),
    ("d.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b" "label": 1}\n', r"line 3 cannot be read: Expecting"),
    ("d.jsonl", '{"text": "a", "label": 1}\n[1]\n', r"must hold objects, but line 2 has \[1\]"),
    ("d.jsonl", '{"text": "a", "text": "b", "label": 1}\n', r"line 1 cannot be read: an object names a key twice"),
    ("d.jsonl", "[" * 100_000, r"line 1 cannot be read"),
    ("d.json", '[\n{"text": "a", "label": 1},\n{"text": "b", "label": 7}]', r"has 7 \(line 3\)"),
    ("d.json", '[{"text": "a", "label": 1}\n{}]', r"line 2 cannot be read: a list must continue"),
    ("d.json", '[{"text": "a", "label": 1}]\n[]', r"line 2 cannot be read: nothing may follow"),
    ("d.csv.gz", gzip.compress(CSV[:99].encode()) + gzip.compress(CSV[99:].encode())[:-9], r"compressed as \.gz says"),
    ("d.parquet", b"x" * 50, r"must be a Parquet file"),
    ("d.parquet", PARQUET.replace(b"w17", b"w\xff7"), r"must be a Parquet file"),
    ("d.parquet", in_parquet(TABLE.append_column("label", TABLE["label"])), r"once, but has 'label' twice"),
]


def test_a_faulty_file_is_told_with_the_place(load, capfd):
    for name, content, message in FAULTS:
        capfd.readouterr()
        with pytest.raises(TaskDataError, match=message) as caught:
            load(name, content.encode("latin-1") if isinstance(content, str) else content)
        assert caught.value.hint
        assert capfd.readouterr() == ("", "")


@given(st.sampled_from(["d.csv", "d.tsv", "d.json", "d.jsonl", "d.parquet", "d.conll", "d.csv.gz"]), st.binary())
def test_whatever_a_file_holds_is_read_or_told(name, content):
    for each in (content, b"[" + content, b"text,label\n" + content.decode("utf-8", "ignore").encode()):
        try:
            columns = read_columns(Path(name), each, ["text", "label"])
        except MalformedFileError as error:
            assert error.message and error.hint
        else:
            assert set(columns.values) <= set(columns.available)
            assert len({len(values) for values in columns.values.values()}) <= 1


# ---- CoNLL -----------------------------------------------------------------------------------------------------------
CONLL = """\
-DOCSTART- -X- O O

# sent_id = 1
Ada NNP B-NP B-PER
left VBD B-VP O

# NN B-NP O\r
Oslo\tNNP  I-NP  B-LOC
"""


def test_sentences_are_read_from_conll_and_a_line_with_other_columns_is_a_fault():
    columns = read_columns(Path("d.conll"), CONLL.encode(), ["tokens", "tags"])
    assert columns.available == ["tokens", "2", "3", "tags"]
    assert columns.values == {"tokens": [["Ada", "left"], ["#", "Oslo"]], "tags": [["B-PER", "O"], ["O", "B-LOC"]]}
    assert columns.lines == [4, 7]
    assert read_columns(Path("d.conll"), CONLL.encode(), ["tokens"], ["tags"]).values.keys() == {"tokens", "tags"}
    alone = read_columns(Path("d.conll.gz"), gzip.compress(b"Ada\nleft\n\n\nOslo"), ["tokens", "tags"])
    assert (alone.available, alone.values) == (["tokens"], {"tokens": [["Ada", "left"], ["Oslo"]]})
    with pytest.raises(MalformedFileError, match="line 2 has 3") as caught:
        read_columns(Path("d.conll"), b"Ada B-PER\nNew York B-LOC\n", ["tokens", "tags"])
    assert "a word and its tag on each line" in caught.value.hint


# ---- requests, as values, files and standard input -------------------------------------------------------------------
def test_rows_are_texts_tuples_dicts_or_those_of_a_table():
    columns = {"second": ["b", pd.NA, None], "id": [1, 2, 3], "first": ["a", float("nan"), "c"]}
    table = pd.DataFrame(columns | {"listed": [np.array(["x", "y"]), ["x"], "x | y"]}, index=[7, 7, 3])
    for texts, columns, rows in [
        ("one", (), [("one",)]),
        (["one", ("two", "three")], (), [("one",), ("two", "three")]),
        (np.array(["one", "two"]), (), [("one",), ("two",)]),
        ([3, None, ["a", "b"]], (), [(3,), (None,), (["a", "b"],)]),  # a task's kind knows what is wrong
        (table, ("first", "second"), [("a", "b"), (None, None), ("c", None)]),
        (table, ("listed", "id"), [(["x", "y"], 1), (["x"], 2), ("x | y", 3)]),
        ([{"second": "b", "n": 1, "first": "a"}, ("c", "d")], ("first", "second"), [("a", "b"), ("c", "d")]),
    ]:
        assert question_rows(texts, columns) == rows


def test_what_is_no_list_or_lacks_a_column_is_refused():
    for texts in [3, {"text": "one"}, b"one", {"one", "two"}, pa.table({"sentence": ["one"]})]:
        with pytest.raises(UsageError, match=type(texts).__name__) as error:
            question_rows(texts)
        assert "as a tuple" in str(error.value.hint)
    for columns, hint in [(["Sentence", "id"], "rename the column S"), (["sentence", "sentence"], "trained on")]:
        with pytest.raises(UsageError) as error:
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
        ("a.csv", "txt,label\nso,1\n", "hint: rename the column txt to"),
        ("a.csv", "text,text\nso,so\n", "`--file` must name each column once, but its header has 'text' twice: "),
        ("a.csv", "review,stars\nso,1\n", "hint: rename the column of the texts to text, or"),
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
