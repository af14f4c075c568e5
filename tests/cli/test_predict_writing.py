"""`predict` and `pull` of an adapter that writes: as it is written on a terminal, plain in a pipe."""

from __future__ import annotations

import json
import sys

from support.toy_language import choosing

import loraxs_search
from loraxs_search.cli._main import run

ROWS = ("w1", "w2 w3", "w4", "w5", "w6 w7", "w8")


def test_texts_are_columns_in_turn_and_answers_stand_alone(say, writer):
    answers = json.loads(say("predict", str(writer), *ROWS, "--json").ok)
    assert [answer["text"] for answer in answers] == ["w1 | w2 w3", "w4 | w5", "w6 w7 | w8"]
    assert say("predict", str(writer), *ROWS).out == "".join(f"{answer['label']}\n" for answer in answers)
    assert any(answer["label"] for answer in answers)
    said = say("predict", str(writer), *ROWS[:3])
    assert said.is_error(2, "takes 2 texts a row, but got 3 texts", "first then second")


def test_on_a_terminal_text_appears_as_it_is_written(writer, capsys, monkeypatch):
    run(("predict", str(writer), *ROWS))
    piped, pieces = capsys.readouterr().out, list[str]()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda piece: (pieces.append(piece), write(piece))[1])
    run(("predict", str(writer), *ROWS))
    shown = capsys.readouterr().out
    assert [line.strip() for line in shown.splitlines()] == piped.splitlines()
    assert len([piece for piece in pieces if piece.strip()]) > len(ROWS)  # not a whole answer at once


def test_python_hears_each_row_after_the_other(writer):
    heard: list[tuple[int, str]] = []
    answers = loraxs_search.predict(writer, ROWS, on_text=lambda row, piece: heard.append((row, piece)))
    assert [row for row, _ in heard] == sorted(row for row, _ in heard)
    for row, answer in enumerate(answers):
        assert "".join(piece for number, piece in heard if number == row).strip() == answer.label
    assert answers == loraxs_search.predict(writer, ROWS)


def test_one_that_chooses_says_how_likely_and_hears_nothing(say, make_headless):
    folder = make_headless(choosing(prompt="say\n{words}"))
    heard: list[str] = []
    (answer,) = loraxs_search.predict(folder, "w1\nw2", on_text=lambda _, piece: heard.append(piece))
    assert heard == []
    assert say("predict", str(folder), "w1\nw2").out == f"{answer.label}\t{answer.score:.3f}\tw1 w2\n"


def test_a_prompt_that_is_cut_is_said(say, writer, caplog):
    assert say("predict", str(writer), "w1", "w2").err == ""  # two columns, not two sentences without quotes
    assert not caplog.records
    assert len(say("predict", str(writer), "w1 " * 40, "w2", "w1", "w2").ok.splitlines()) == 2
    assert "1 of 2 rows are longer than max_length=16: their beginnings are lost" in caplog.text
