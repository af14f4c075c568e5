"""`predict` of files, of standard input and of rows as they are typed, as answers are written; `load` in Python."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.shell import Said
from support.toy_language import choosing, save_base, writing
from support.toys import seal

import loraxs_search
from loraxs_search.cli._main import run
from loraxs_search.errors import TaskDataError, UsageError
from loraxs_search.manifest import verify
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.search import OperatingPoint

TEXTS = ["a moving, funny film", 'it says "no"', "two\nlines\tand a tab", "ende, süß"]
ROWS = ("w1", "w2 w3", "w4", "w5", "w6 w7", "w8")


@pytest.fixture
def table(tmp_path):
    """Write rows as a CSV file."""

    def write(*rows: list[str], name: str = "rows.csv") -> str:
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        return str(tmp_path / name)

    return write


@pytest.fixture
def predict(say, adapter):
    """Run the command with an adapter."""

    def ask(*args: str, of: Path = adapter) -> Said:
        return say("predict", str(of), *args)

    return ask


def rows_of(said: Said) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(said.ok, newline="")))


def lines_of(said: Said) -> list[dict[str, str]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in said.ok.splitlines()]


@pytest.fixture
def make_headless(make_adapter, tmp_path):
    """Make an adapter of a decoder, for a task without a head."""
    base = save_base(tmp_path / "base")
    return lambda task: make_adapter(tmp_path / "decoder", base, task=task, seed=3, rank=4)


@pytest.fixture
def writer(make_headless):
    """An adapter that writes, and reads two columns."""
    return make_headless(writing(prompt="{first} say {second}"))


# ---- files -----------------------------------------------------------------------------------------------------------
def test_a_file_gives_the_rows_that_python_gives_and_csv_keeps_lines_and_tabs(predict, adapter, tmp_path, table):
    expected = loraxs_search.predict(adapter, TEXTS)
    file = table(["text"], *([text] for text in TEXTS))
    assert json.loads(predict("--file", file, "--json").ok) == json.loads(json.dumps(list(map(vars, expected))))
    for read, it in zip(lines_of(predict("--file", file, "--format", "jsonl")), expected, strict=True):
        assert (read["prediction"], read["score"], read["probabilities"]) == (it.label, it.score, it.probabilities)
        assert "entities" not in read, "nothing is tagged"
    read = rows_of(predict("--file", file, "--format", "csv"))
    assert [(row["text"], row["prediction"]) for row in read] == [(it.text, it.label) for it in expected]
    assert predict("--file", file).ok.splitlines()[2].endswith("\ttwo lines\tand a tab")
    (tmp_path / "rows.jsonl").write_text('{"text": "so\\rso"}\n')
    (row,) = rows_of(predict("--file", str(tmp_path / "rows.jsonl"), "--format", "csv"))
    assert row["text"] == "so\rso"  # a lone carriage return ends no row


def test_rows_that_are_not_sure_stay_unanswered_with_their_scores_and_are_counted(predict, adapter, table):
    file, plain = table(["text"], *([text] for text in TEXTS)), loraxs_search.predict(adapter, TEXTS)
    least = sorted(it.score for it in plain)[1]
    points = (OperatingPoint(0.95, least, 500), OperatingPoint(0.99, None, 500, rows_needed=2000))
    seal(adapter, replace(verify(adapter), operating_points=points))
    expected = [(it.label if it.score >= least else None, it.score) for it in plain]
    said = predict("--file", file, "--format", "jsonl", "--sure", "0.95")
    assert [(row["prediction"], row["score"]) for row in lines_of(said)] == expected
    assert said.err == "1 of 4 rows unanswered: not sure at 0.95\n"
    for form in ("csv", "text"):
        lines = predict(*TEXTS, "--sure", "0.95", "--format", form).ok
        read = list(csv.DictReader(io.StringIO(lines, newline=""))) if form == "csv" else lines.splitlines()
        labels = [row["prediction"] or "?" for row in read] if form == "csv" else [row.split("\t")[0] for row in read]
        assert labels == [label or "?" for label, _ in expected]
        assert form == "text" or [row["sure"] for row in read] == [str(bool(label)) for label, _ in expected]
    assert [
        (row["label"], row["score"]) for row in json.loads(predict(*TEXTS, "--json", "--sure", ".95").ok)
    ] == expected
    assert [it.sure(0.95) for it in loraxs_search.predict(adapter, TEXTS)] == [bool(label) for label, _ in expected]
    assert predict("so", "--sure", "0.9").is_error(2, "(those of task-2: 0.95), but got 0.9")
    assert predict("so", "--sure", "0.99").is_error(2, "about 2,000 would")


def test_jsonl_is_valid_whatever_stdout_can_encode(adapter, monkeypatch):
    for encoding in ("utf-8", "latin-1"):
        written = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", write_through=True)
        monkeypatch.setattr("sys.stdout", written)
        assert run(["predict", str(adapter), "so fine \U0001f600", "--format", "jsonl"]) == 0
        assert json.loads(written.buffer.getvalue().decode(encoding))["text"] == "so fine \U0001f600"


def test_each_form_keeps_the_columns_and_rows_of_the_file(predict, writer, tmp_path, table, monkeypatch):
    monkeypatch.setattr("loraxs_search.cli.predict._AT_ONCE", 2)
    file = table(
        ["id", "text", "label", "note"], ["7", "so so", "good", "a, b"], ["8", "two\nlines", "bad"], ["9", "fine"]
    )
    answered = rows_of(predict("--file", file, "--format", "csv"))
    assert list(answered[0]) == ["id", "text", "label", "note", "prediction", "score"]
    kept = [("7", "so so", "good", "a, b"), ("8", "two\nlines", "bad", ""), ("9", "fine", "", "")]
    assert [tuple(row.values())[:4] for row in answered] == kept
    (tmp_path / "rows.jsonl").write_text('{"text": "so so", "more": [1]}\n{"text": "so", "more": {"a": 2}}\n')
    pq.write_table(pa.table({"text": ["so so", "bad"], "more": [0.5, float("nan")]}), tmp_path / "rows.parquet")
    for name, more in (("rows.jsonl", [[1], {"a": 2}]), ("rows.parquet", [0.5, None])):
        said = predict("--file", str(tmp_path / name), "--format", "jsonl")
        assert [row["more"] for row in lines_of(said)] == more
    header = ["", "score", "text", "adapter_score"]
    file = table(header, ["0", "a", "so so", "b"], ["1", "c", "fine", "d"])
    for form, read in (("csv", rows_of), ("jsonl", lines_of)):
        rows = read(predict("--file", file, "--format", form))
        assert list(rows[0])[:6] == [*header, "prediction", "adapter_adapter_score"]
        assert [tuple(row.values())[:4] for row in rows] == [("0", "a", "so so", "b"), ("1", "c", "fine", "d")]
    file = table(["text", "n", "n"], ["so so", "1", "2"])
    assert predict("--file", file, "--format", "csv").is_error(2, "'n' twice")
    assert predict("--file", file).ok
    file = table(["n", "second", "first"], ["1", "w2 w3", "w1"])
    (row,) = rows_of(predict("--file", file, "--format", "csv", of=writer))
    assert list(row) == ["n", "second", "first", "prediction", "score"]
    (typed,) = rows_of(predict("w1", "w2 w3", "--format", "csv", of=writer))
    assert (typed["first"], typed["second"], typed["prediction"]) == ("w1", "w2 w3", row["prediction"])


def test_lines_of_a_text_file_and_of_standard_input_are_rows(predict, tmp_path, monkeypatch):
    (tmp_path / "texts.txt").write_bytes(b"a fine film\r\nso so\r\n\r\n")
    printed = predict("--file", str(tmp_path / "texts.txt")).ok
    assert [line.split("\t")[2] for line in printed.splitlines()] == ["a fine film", "so so"]
    for options in (("--file", "-"), ("-",)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a fine film\nso so")))
        assert predict(*options).ok == printed
    # Left out, a blank line would shift the answers below it against the lines of the file.
    (tmp_path / "texts.txt").write_text("\na fine film\n \nso so\n\n\n")
    assert predict("--file", str(tmp_path / "texts.txt")).is_error(1, "line 1 of", "(2 such rows)")


def test_a_long_file_is_answered_in_parts_as_in_one(predict, table, monkeypatch, caplog):
    file = table(["text"], *([f"film {i}" + " so" * 200 * (i % 2)] for i in range(11)))
    whole = predict("--file", file, "--format", "csv").ok
    monkeypatch.setattr("loraxs_search.cli.predict._AT_ONCE", 4)
    assert predict("--file", file, "--format", "csv").ok == whole
    assert [record.message.split(" are")[0] for record in caplog.records[1:]] == ["5 of 11 rows"]


def test_an_answer_that_is_a_number_keeps_its_digits_and_no_label_and_levels_are_said(predict, monkeypatch):
    class Answers:
        columns = ("text",)

        def __call__(self, *_: object, **__: object) -> list[Prediction]:
            return [answer]

    monkeypatch.setattr("loraxs_search.predictor.Predictor", lambda _: Answers())
    answer = Prediction("so", "", 0.5)
    assert predict("so").ok.split("\t")[0] == "-"
    answer = Prediction("so", "2", 0.5, expected=2.25)
    assert rows_of(predict("so", "--format", "csv"))[0]["expected"] == "2.25"
    for number in (0.0000123, 1234567.89):
        answer = Prediction("so", None, number)
        assert float(predict("so").ok.split("\t")[0]) == number
        (row,) = rows_of(predict("so", "--format", "csv"))
        assert (float(row["prediction"]), row["score"]) == (number, "")


def test_a_row_that_cannot_be_answered_is_told_before_any_is(
    predict, adapter, make_headless, table, tmp_path, monkeypatch
):
    monkeypatch.setattr("loraxs_search.cli.predict._AT_ONCE", 2)
    (tmp_path / "a.jsonl").write_text('{"text": "so"}\n' * 5 + '\n{"text": 3}\n')
    too_long = [["words", "choices"], *([["w1", "w2 | w3"]] * 4), ["w1", "w2 | " + "w3 " * 40]]
    for folder, file, *message in [
        (adapter, table(["n", "text"], *([["1", "so"]] * 5), ["6", ""]), "must be given text to read, but line 7 of "),
        (adapter, str(tmp_path / "a.jsonl"), "a.jsonl has 3 (line 7)."),
        (make_headless(choosing(options="choices")), table(*too_long, name="b.csv"), "b.csv", "(line 6)"),
    ]:
        assert predict("--file", file, of=folder).is_error(1, *message)


def test_rows_come_from_one_place(predict, monkeypatch):
    monkeypatch.setattr("loraxs_search.predictor.Predictor", None)  # what is refused loads nothing
    assert predict().is_error(2, "but got none of them", "--file - reads standard input")
    assert "but got TEXT and --file" in predict("so", "--file", "x.txt").err
    assert "must stand without --repl" in predict("--repl", "--json").err
    assert "must stand without --format csv" in predict("so", "--format", "csv", "--json").err


# ---- row after row ---------------------------------------------------------------------------------------------------
def test_rows_are_answered_as_they_are_typed_and_one_that_cannot_be_read_ends_nothing(predict, writer, monkeypatch):
    def typed(text: str | bytes, *options: str, **of: Path) -> Said:
        raw = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        return predict("--repl", *options, **of)

    assert typed("a fine film\n\nso so").ok == predict("a fine film", "so so").ok
    said = typed("w1\nw2 w3\nw4\nw5\nw6", of=writer)  # the last row is not complete
    plain = predict("w1", "w2 w3", "w4", "w5", of=writer).ok
    assert [line.strip() for line in said.ok.splitlines()] == plain.splitlines()
    said = typed(b"caf\xe9\nfine film\n", "--format", "jsonl")
    assert [row["text"] for row in lines_of(said)] == ["fine film"]
    assert "must be given valid Unicode, but got 'caf" in said.err


# ---- Python ----------------------------------------------------------------------------------------------------------
def test_a_loaded_adapter_answers_again_and_again(adapter, writer):
    classify = loraxs_search.load(adapter)
    assert classify(TEXTS) == loraxs_search.predict(adapter, TEXTS) == classify(TEXTS)
    assert classify("so so") == classify(["so so"])
    table = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS})
    assert classify(table) == loraxs_search.predict(adapter, table) == classify(TEXTS)
    assert classify(table[:0]) == []
    assert (classify.columns, classify.labels) == (("text",), ("label 0", "label 1"))
    assert repr(classify).startswith("<Predictor task-2: lora-xs on ")
    with pytest.raises(UsageError, match="must have the column text"):
        loraxs_search.predict(adapter, table[["id"]])
    with pytest.raises(TaskDataError):
        loraxs_search.predict(adapter, ["so so", float("nan"), None, " ", "fine"])
    rows = [{"second": "w2 w3", "first": "w1", "n": 3}]
    assert loraxs_search.predict(writer, rows) == loraxs_search.predict(writer, [("w1", "w2 w3")])


def test_the_package_lists_its_public_names():
    assert dir(loraxs_search) == sorted(loraxs_search.__all__)
    assert {"load", "launch", "Predictor"} <= set(dir(loraxs_search))
    assert not {"Any", "annotations", "importlib"} & set(dir(loraxs_search))
    assert all(getattr(loraxs_search, name) is not None for name in dir(loraxs_search))


# ---- written answers -------------------------------------------------------------------------------------------------
def test_texts_are_columns_in_turn_and_answers_stand_alone_word_by_word_on_a_terminal(
    predict, writer, capsys, monkeypatch
):
    answers = json.loads(predict(*ROWS, "--json", of=writer).ok)
    assert [answer["text"] for answer in answers] == ["w1 | w2 w3", "w4 | w5", "w6 w7 | w8"]
    piped = predict(*ROWS, of=writer).ok
    assert piped == "".join(f"{answer['label']}\n" for answer in answers)
    assert any(answer["label"] for answer in answers)
    said = predict(*ROWS[:3], of=writer)
    assert said.is_error(2, "takes 2 texts a row, but got 3 texts", "first then second")
    pieces, write = list[str](), sys.stdout.write
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "write", lambda piece: (pieces.append(piece), write(piece))[1])
    run(("predict", str(writer), *ROWS))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == piped.splitlines()
    assert len([piece for piece in pieces if piece.strip()]) > len(ROWS)  # not a whole answer at once


def test_python_hears_each_row_after_the_other_and_of_one_that_chooses_nothing(predict, writer, make_headless):
    heard = list[tuple[int, str]]()
    answers = loraxs_search.predict(writer, ROWS, on_text=lambda row, piece: heard.append((row, piece)))
    assert [row for row, _ in heard] == sorted(row for row, _ in heard)
    for row, answer in enumerate(answers):
        assert "".join(piece for number, piece in heard if number == row).strip() == answer.label
    assert answers == loraxs_search.predict(writer, ROWS)
    chooser = make_headless(choosing(prompt="say\n{words}"))
    (answer,) = loraxs_search.predict(chooser, "w1\nw2", on_text=lambda *_: pytest.fail("it writes"))
    assert predict("w1\nw2", of=chooser).out == f"{answer.label}\t{answer.score:.3f}\tw1 w2\n"


def test_a_prompt_that_is_cut_is_said(predict, writer, caplog):
    assert predict("w1", "w2", of=writer).err == ""  # two columns, not two sentences without quotes
    assert not caplog.records
    assert len(predict("w1 " * 40, "w2", "w1", "w2", of=writer).ok.splitlines()) == 2
    assert "1 of 2 rows are longer than max_length=16: their beginnings are lost" in caplog.text
