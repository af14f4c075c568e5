"""`predict` of files, of standard input and of rows that somebody types; `loraxs_search.load` in Python."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.said import Said
from support.toy_language import choosing

import loraxs_search
from loraxs_search.cli._main import run
from loraxs_search.records.adapter import Prediction

TEXTS = ["a moving, funny film", 'it says "no"', "two\nlines\tand a tab", "ende, süß"]
Say = Callable[..., Said]


@pytest.fixture
def piped(say, adapter, monkeypatch):
    """Have what is on standard input answered."""

    def run(content: str | bytes, *options: str) -> Said:
        raw = content if isinstance(content, bytes) else content.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return say("predict", str(adapter), *(options or ("-",)))

    return run


def table(path: Path, rows: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


# ---- files -----------------------------------------------------------------------------------------------------------
def test_a_file_gives_the_rows_that_python_gives_and_csv_keeps_lines_and_tabs(say, adapter, tmp_path):
    expected = loraxs_search.predict(adapter, TEXTS)
    file = str(table(tmp_path / "rows.csv", [["text"], *([text] for text in TEXTS)]))
    assert json.loads(say("predict", str(adapter), "--file", file, "--json").ok) == json.loads(
        json.dumps(list(map(vars, expected)))
    )
    for row, it in zip(
        say("predict", str(adapter), "--file", file, "--format", "jsonl").ok.splitlines(), expected, strict=True
    ):
        read = json.loads(row)
        assert (read["prediction"], read["score"], read["probabilities"]) == (it.label, it.score, it.probabilities)
        assert "entities" not in read, "nothing is tagged"
    read = list(csv.DictReader(io.StringIO(say("predict", str(adapter), "--file", file, "--format", "csv").ok)))
    assert [(row["text"], row["prediction"]) for row in read] == [(it.text, it.label) for it in expected]
    assert say("predict", str(adapter), "--file", file).ok.splitlines()[2].endswith("\ttwo lines\tand a tab")
    (tmp_path / "rows.jsonl").write_text('{"text": "so\\rso"}\n')
    printed = say("predict", str(adapter), "--file", str(tmp_path / "rows.jsonl"), "--format", "csv").ok
    (row,) = csv.DictReader(io.StringIO(printed, newline=""))
    assert row["text"] == "so\rso"  # a lone carriage return ends no row


def test_a_blank_line_between_texts_is_an_empty_row(say, adapter, tmp_path):
    """Left out, it would shift the answers below it against the lines of the file."""
    (tmp_path / "texts.txt").write_text("\na fine film\n \nso so\n\n\n")
    assert say("predict", str(adapter), "--file", str(tmp_path / "texts.txt")).is_error(1, "line 1 of", "(2 such rows)")


def test_jsonl_is_valid_whatever_stdout_can_encode(say, adapter, monkeypatch):
    for encoding in ("utf-8", "latin-1"):
        written = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", write_through=True)
        monkeypatch.setattr("sys.stdout", written)
        assert run(["predict", str(adapter), "so fine \U0001f600", "--format", "jsonl"]) == 0
        assert json.loads(written.buffer.getvalue().decode(encoding))["text"] == "so fine \U0001f600"


def test_csv_keeps_the_columns_and_rows_of_the_file(say, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("loraxs_search.cli.predict._AT_ONCE", 2)
    rows = [["id", "text", "label", "note"], ["7", "so so", "good", "a, b"], ["8", "two\nlines", "bad"], ["9", "fine"]]
    file = table(tmp_path / "rows.csv", rows)
    printed = say("predict", str(adapter), "--file", str(file), "--format", "csv").ok
    answered = list(csv.DictReader(io.StringIO(printed)))
    assert list(answered[0]) == ["id", "text", "label", "note", "prediction", "score"]
    assert [(row["id"], row["text"], row["label"], row["note"]) for row in answered] == [
        ("7", "so so", "good", "a, b"),
        ("8", "two\nlines", "bad", ""),
        ("9", "fine", "", ""),
    ]
    (tmp_path / "rows.jsonl").write_text('{"text": "so so", "more": [1]}\n{"text": "so", "more": {"a": 2}}\n')
    pq.write_table(pa.table({"text": ["so so", "bad"], "more": [0.5, float("nan")]}), tmp_path / "rows.parquet")
    for name, more in (("rows.jsonl", [[1], {"a": 2}]), ("rows.parquet", [0.5, None])):
        printed = say("predict", str(adapter), "--file", str(tmp_path / name), "--format", "jsonl").ok
        assert [json.loads(line, parse_constant=pytest.fail)["more"] for line in printed.splitlines()] == more


def test_no_column_of_the_file_is_lost(say, adapter, tmp_path):
    header = ["", "score", "text", "adapter_score"]
    file = table(tmp_path / "rows.csv", [header, ["0", "a", "so so", "b"], ["1", "c", "fine", "d"]])
    for form in ("csv", "jsonl"):
        printed = say("predict", str(adapter), "--file", str(file), "--format", form).ok
        rows = (
            list(csv.DictReader(io.StringIO(printed))) if form == "csv" else list(map(json.loads, printed.splitlines()))
        )
        assert list(rows[0])[:6] == [*header, "prediction", "adapter_adapter_score"]
        assert [tuple(row.values())[:4] for row in rows] == [("0", "a", "so so", "b"), ("1", "c", "fine", "d")]
    file = table(tmp_path / "twice.csv", [["text", "n", "n"], ["so so", "1", "2"]])
    assert say("predict", str(adapter), "--file", str(file), "--format", "csv").is_error(2, "'n' twice")
    assert say("predict", str(adapter), "--file", str(file)).ok


def test_lines_of_a_text_file_and_of_standard_input_are_rows(say, piped, adapter, tmp_path):
    (tmp_path / "texts.txt").write_bytes(b"a fine film\r\nso so\r\n\r\n")
    printed = say("predict", str(adapter), "--file", str(tmp_path / "texts.txt")).ok
    assert [line.split("\t")[2] for line in printed.splitlines()] == ["a fine film", "so so"]
    assert piped("a fine film\nso so", "--file", "-").ok == printed
    assert piped("a fine film\nso so").ok == printed


def test_a_long_file_is_answered_in_parts_as_in_one(say, adapter, tmp_path, monkeypatch, caplog):
    file = table(tmp_path / "rows.csv", [["text"], *([f"film {i}" + " so" * 200 * (i % 2)] for i in range(11))])
    whole = say("predict", str(adapter), "--file", str(file), "--format", "csv").ok
    monkeypatch.setattr("loraxs_search.cli.predict._AT_ONCE", 4)
    said = say("predict", str(adapter), "--file", str(file), "--format", "csv")
    assert said.ok == whole
    assert [record.message.split(" are")[0] for record in caplog.records[1:]] == ["5 of 11 rows"]


def test_a_row_of_several_columns_keeps_each(say, writer, tmp_path):
    file = table(tmp_path / "rows.csv", [["n", "second", "first"], ["1", "w2 w3", "w1"]])
    (row,) = csv.DictReader(io.StringIO(say("predict", str(writer), "--file", str(file), "--format", "csv").ok))
    assert list(row) == ["n", "second", "first", "prediction", "score"]
    (typed,) = csv.DictReader(io.StringIO(say("predict", str(writer), "w1", "w2 w3", "--format", "csv").ok))
    assert (typed["first"], typed["second"], typed["prediction"]) == ("w1", "w2 w3", row["prediction"])


def test_an_answer_that_is_a_number_keeps_its_digits(say, monkeypatch):
    class Regression:
        columns = ("text",)

        def __call__(self, *_: object, **__: object) -> list[Prediction]:
            return [Prediction("so", None, number)]

    monkeypatch.setattr("loraxs_search.api.folder_of", lambda *_: Path())
    monkeypatch.setattr("loraxs_search.predictor.Predictor", lambda _: Regression())
    for number in (0.0000123, 1234567.89):
        assert float(say("predict", "scores", "so").ok.split("\t")[0]) == number
        (row,) = csv.DictReader(io.StringIO(say("predict", "scores", "so", "--format", "csv").ok))
        assert (float(row["prediction"]), row["score"]) == (number, "")


def test_a_row_that_cannot_be_answered_is_told_before_any_is(say, adapter, make_headless, tmp_path, monkeypatch):
    monkeypatch.setattr("loraxs_search.cli.predict._AT_ONCE", 2)
    chooser = make_headless(choosing(options="choices"))
    table(tmp_path / "a.csv", [["n", "text"], *([["1", "so"]] * 5), ["6", ""]])
    (tmp_path / "a.jsonl").write_text('{"text": "so"}\n' * 5 + '\n{"text": 3}\n')
    table(tmp_path / "b.csv", [["words", "choices"], *([["w1", "w2 | w3"]] * 4), ["w1", "w2 | " + "w3 " * 40]])
    for folder, name, *message in [
        (adapter, "a.csv", "must be given text to read, but line 7 of "),
        (adapter, "a.jsonl", "a.jsonl has 3 (line 7)."),
        (chooser, "b.csv", "b.csv", "(line 6)"),
    ]:
        said = say("predict", str(folder), "--file", str(tmp_path / name))
        assert said.out == ""
        assert said.is_error(1, *message)


def test_rows_come_from_one_place(say, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("loraxs_search.predictor.Predictor", None)  # what is refused loads nothing
    assert say("predict", str(adapter)).is_error(2, "but got none of them", "--file - reads standard input")
    assert "but got TEXT and --file" in say("predict", str(adapter), "so", "--file", "x.txt").err
    assert "must stand without --repl" in say("predict", str(adapter), "--repl", "--json").err
    assert "must stand without --format csv" in say("predict", str(adapter), "so", "--format", "csv", "--json").err
