"""`init` as a command: what it prints, asks for and overwrites; what it writes is in tests/unit/scaffold."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from support.rows import csv_of, drafted, texts
from support.said import Said
from support.spaces import QUICKSTART

from loraxs_search.search_space.load import load_space

Say = Callable[..., Said]
PLAIN = csv_of()


# ---- what is guessed and chosen --------------------------------------------------------------------------------------
def test_what_is_guessed_is_what_is_there(say, rows_folder):
    said = drafted(say, "Film Reviews (2024).csv", csv_of(80, "id,review,sentiment".partition(",")[2]))
    assert said.code == 0, said.err
    space = load_space("./film-reviews-2024.yaml")
    assert (space.task.name, space.task.text, space.task.label) == ("film-reviews-2024", "review", "sentiment")
    assert (space.task.labels, space.task.metric) == (("neg", "pos"), "accuracy")
    assert space.base_model.id == "sentence-transformers/all-MiniLM-L6-v2"
    assert "answers     sentiment: neg (40), pos (40)" in said.err


def test_empty_rows_are_dropped_on_demand(say, rows_folder):
    content = PLAIN + "one,\n,pos\nsoo,N/A\n"
    assert drafted(say, "rows.csv", content).is_error(1, "--drop-empty")
    said = say("init", "rows.csv", "--drop-empty", "--metric", "macro_f1")
    assert said.ok
    assert "answers     label: neg (30), pos (30)" in said.err
    assert "3 rows without text or answer left out" in said.err
    task = load_space("./rows.yaml").task
    assert (task.labels, task.metric) == (("neg", "pos"), "macro_f1")
    assert Path("rows.csv").read_text() == content
    assert say("check", "rows.yaml", "--data").ok


def test_options_are_held_against_the_file(say, rows_folder):
    assert drafted(say, "rows.csv", PLAIN, "--text", "txt").is_error(
        2, "`--text` must be one of: text, label, but got 'txt'"
    )
    assert drafted(say, "rows.csv", PLAIN, "--kind", "classes").is_error(2, "`--kind` must be one of: ")
    assert drafted(say, "rows.csv", PLAIN, "--metric", "acc").is_error(2, "`--metric` must be one of: accuracy, ")
    assert drafted(say, "rows.csv", PLAIN, "--metric", "pearson").is_error(2, "`--metric` must be one of: ")
    assert drafted(say, "rows.csv", PLAIN, "--labels", "pos,bad").is_error(2, "lacks 'neg' (line 2, ")
    assert drafted(say, "rows.csv", PLAIN, "--labels", "pos").is_error(2, "must name two different labels at least")
    assert drafted(say, "rows.csv", PLAIN, "--text", "text", "--label", "text").is_error(2, "must be another column")
    assert drafted(say, "rows.csv", PLAIN, "--name", "Not a name").is_error(2, "task.name: must start with")
    assert not Path("Not a name.yaml").exists()
    assert say("init", "away.csv").is_error(2, "there is no away.csv")
    Path("rows.md").write_text("so")
    assert say("init", "rows.md").is_error(2, "must end in one of .json, .jsonl, .csv, .tsv, .parquet")
    assert drafted(say, "rows.csv", PLAIN).code == 0
    Path("rows.csv").write_text(PLAIN + "so,Pos\n")  # what is there is said before rows are read
    assert say("init", "rows.csv").is_error(2, "`--out` must not exist, but rows.yaml does", "--force")
    Path("rows.csv").write_text(PLAIN)
    assert say("init", "rows.csv", "--force").ok


def test_what_is_chosen_stands_in_the_space(say, rows_folder):
    chosen = ("--name", "films", "--metric", "macro_f1", "--max-length", "40", "--out", "other/films.yaml")
    Path("other").mkdir()
    assert drafted(say, "rows.csv", PLAIN, "--labels", "pos,neg", "--base", QUICKSTART["id"], *chosen).ok
    space = load_space("other/films.yaml")
    assert (space.task.name, space.task.labels, space.task.max_length) == ("films", ("pos", "neg"), 40)
    assert space.task.metrics[0] == space.task.metric == "macro_f1"


# ---- questions -------------------------------------------------------------------------------------------------------
def test_on_a_terminal_what_cannot_be_known_is_asked_for(say, rows_folder, monkeypatch):
    rows = "first,second,note\n" + "\n".join(f"{t},{t[::-1]},{t[0]}x{i % 2}" for i, t in enumerate(texts(60)))

    def typed(answers: str) -> Said:
        monkeypatch.setattr("sys.stdin", Terminal(answers))
        Path("rows.yaml").unlink(missing_ok=True)
        return drafted(say, "rows.csv", rows)

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    said = typed("second\n")
    assert (said.code, said.out) == (0, "rows.yaml\n"), said.err
    assert load_space("./rows.yaml").task.text == "second"
    assert "text (first, second) [first]: " in said.err
    assert typed("\n").ok
    assert load_space("./rows.yaml").task.text == "first"
    said = typed("secnd\nsecond\n")
    assert said.ok
    assert "error: Did you mean second? `--text` must be one of: second, " in said.err
    assert typed("").code == 130  # Ctrl-D
    assert not Path("rows.yaml").exists()


class Terminal(io.StringIO):
    """What somebody types."""

    def isatty(self) -> bool:
        return True
