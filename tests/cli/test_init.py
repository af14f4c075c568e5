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


def test_empty_rows_are_dropped_on_demand(say, rows_folder):
    content = PLAIN + "one,\n,pos\nsoo,N/A\n"
    assert drafted(say, "rows.csv", content).is_error(1, "--drop-empty")
    said = say("init", "rows.csv", "--drop-empty", "--metric", "macro_f1")
    assert said.ok
    assert "answers     label: neg (30), pos (30)" in said.err
    assert "3 rows without text or answer left out" in said.err
    assert load_space("./rows.yaml").task.metric == "macro_f1"
    assert say("check", "rows.yaml", "--data").ok


def test_options_are_held_against_the_file(say, rows_folder):
    for options, said in (
        (("--text", "txt"), "`--text` must be one of: text, label, but got 'txt'"),
        (("--kind", "classes"), "`--kind` must be one of: "),
        (("--metric", "pearson"), "`--metric` must be one of: accuracy, "),
        (("--labels", "pos,bad"), "lacks 'neg' (line 2, "),
        (("--labels", "pos"), "must name two different labels at least"),
        (("--text", "text", "--label", "text"), "must be another column"),
        (("--name", "Not a name"), "task.name: must start with"),
    ):
        assert drafted(say, "rows.csv", PLAIN, *options).is_error(2, said)
    assert not Path("Not a name.yaml").exists()
    assert say("init", "away.csv").is_error(2, "there is no away.csv")
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
