"""`init` as a command and of data frames; what it writes is in tests/unit/scaffold."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.rows import csv_of, drafted, texts
from support.shell import Said
from support.spaces import QUICKSTART

import loraxs_search
from loraxs_search.errors import TaskDataError, UsageError
from loraxs_search.search_space.load import load_space
from loraxs_search.tasks.prepared import load_data

PLAIN = csv_of(600)  # few rows would be scored, which takes seconds


@pytest.fixture
def rows_folder(tmp_path, monkeypatch, in_warm_home):
    """An empty folder for a user's rows, which a test is in; the base is at hand.

    `check --data` draws the rows of a standard error few times: a hundred F1 scores take longer than all else.
    """
    monkeypatch.setattr("loraxs_search.tasks.report._RESAMPLES", 2)
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path / "rows")
    return tmp_path / "rows"


# ---- the command -----------------------------------------------------------------------------------------------------
def test_empty_rows_are_dropped_on_demand(say, rows_folder):
    assert drafted(say, "rows.csv", PLAIN + "one,\n,pos\nsoo,N/A\n").is_error(1, "--drop-empty")
    said = say("init", "rows.csv", "--drop-empty", "--metric", "macro_f1")
    assert said.ok
    assert "answers     label: neg (300), pos (300)" in said.err
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
    chosen = ("--name", "films", "--metric", "macro_f1", "--max-length", "40", "--out", "other/films.yaml")
    Path("other").mkdir()
    assert drafted(say, "rows.csv", PLAIN, "--labels", "pos,neg", "--base", QUICKSTART["id"], *chosen).ok
    task = load_space("other/films.yaml").task
    assert (task.name, task.labels, task.max_length) == ("films", ("pos", "neg"), 40)
    assert task.metrics[0] == task.metric == "macro_f1"
    assert say("init", "rows.csv").ok
    Path("rows.csv").write_text(PLAIN + "so,Pos\n")  # what is there is said before rows are read
    assert say("init", "rows.csv").is_error(2, "`--out` must not exist, but rows.yaml does", "--force")
    assert drafted(say, "rows.csv", PLAIN, "--force").ok


def test_on_a_terminal_what_cannot_be_known_is_asked_for(say, rows_folder, monkeypatch):
    rows = "first,second,note\n" + "\n".join(f"{t},{t[::-1]},{t[0]}x{i % 2}" for i, t in enumerate(texts(600)))

    def typed(answers: str) -> Said:
        monkeypatch.setattr("sys.stdin", stdin := io.StringIO(answers))
        stdin.isatty = lambda: True  # type: ignore[method-assign]
        Path("rows.yaml").unlink(missing_ok=True)
        return drafted(say, "rows.csv", rows)

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for answers, chosen, question in (
        ("second\n", "second", None),
        ("\n\n", "first", None),
        ("secnd\nsecond\nWhat is it?\n", "second", "What is it?"),
    ):
        said = typed(answers)
        assert said.ok == "rows.yaml\n"
        task = load_space("./rows.yaml").task
        assert (task.text, task.question) == (chosen, question)
        assert "text (first, second) [first]: " in said.err
    assert "error: Did you mean second? `--text` must be one of: second, " in said.err
    assert typed("").code == 130  # Ctrl-D
    assert not Path("rows.yaml").exists()


# ---- Python ----------------------------------------------------------------------------------------------------------
def frame(**changes: Any) -> pd.DataFrame:
    numbers = [1 / (i + 3) for i in range(600)]
    return pd.DataFrame({"review": texts(600), "verdict": ["good", "bad"] * 300, "number": numbers, **changes})


def drawn(rows: pd.DataFrame, label: str = "verdict", **options: Any) -> tuple[Any, np.ndarray]:
    """Return the space of a frame, and the answers of all of its rows."""
    space = loraxs_search.init(rows, text="review", label=label, **{"name": "films", **options})
    return space, np.concatenate([rows.labels for rows in load_data(space.task).values()])


def test_python_makes_a_space_of_a_frame(fresh_home):
    space, answers = drawn(frame())
    assert (space.task.name, space.task.text, space.task.labels) == ("films", "review", ("bad", "good"))
    assert len(answers) == 600
    assert fresh_home in Path(space.source).parents
    assert "verdict: bad (300), good (300)" in str(space)
    assert drawn(frame())[0] == space, "the same rows and choices are the same space"
    with pytest.raises(UsageError, match="`out` must not exist"):
        drawn(frame(), out=space.source)
    tiny = [1.23456789e-13 * (i + 1) for i in range(600)]
    numbers, answers = drawn(frame(number=tiny), "number", name="numbers")
    assert numbers.task.kind == "regression"
    assert sorted(answers) == sorted(np.float32(tiny)), "every digit is kept"
    assert drawn(frame(verdict=[0, 1] * 300), labels=[1, 0], name="ids")[0].task.labels == ("1", "0")


def test_a_frame_with_faults_is_refused_or_cleaned(fresh_home):
    gaps = frame(verdict=[None, float("nan"), *(["good", "bad"] * 299)], day="2024-05-01")
    gaps.index = range(100, 700)
    with pytest.raises(TaskDataError, match="row 100, row 101 has none") as caught:
        drawn(gaps)
    assert "drop_empty=True" in str(caught.value.hint)
    assert "jsonl" not in f"{caught.value} {caught.value.hint}" and "--" not in f"{caught.value} {caught.value.hint}"
    space, answers = drawn(gaps, drop_empty=True)
    assert (space.task.labels, len(answers)) == (("bad", "good"), 598)
    assert "2 rows without text or answer left out" in str(space)
    twice = frame()
    twice.columns = ["review", "verdict", "verdict"]
    for rows in (twice, frame(review=pd.Series(["\ud800 so"] * 600, dtype=object))):
        with pytest.raises(UsageError):
            drawn(rows)
    with pytest.raises(UsageError, match="name"):
        loraxs_search.init(frame(), label="verdict")
    with pytest.raises(UsageError, match="DataFrame"):
        loraxs_search.init([{"text": "a"}], name="films")


def test_python_reads_a_file_that_has_changed_and_another_of_its_name(rows_folder, monkeypatch):
    def drafted_from(content: str) -> Any:
        Path("rows.csv").write_text(content)
        return loraxs_search.init("rows.csv", drop_empty=True)

    spaces = [drafted_from(PLAIN + ",neg\n"), drafted_from(PLAIN + "so,neg\n,pos\n")]
    (rows_folder / "other").mkdir()
    monkeypatch.chdir(rows_folder / "other")
    spaces.append(drafted_from(PLAIN + ",neg\n"))
    assert [sum(map(len, load_data(space.task).values())) for space in spaces] == [600, 601, 600]
    assert len({space.source for space in spaces}) == 3
