"""What a search shows on a terminal: a live view."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import time
from dataclasses import replace

import pytest
from rich.console import Console
from support.recorded_search import FACTS, begun, ended, training
from support.terminal import Terminal

from loraxs_search.cli._live import draw
from loraxs_search.cli.live_text import LinesView
from loraxs_search.log.events import Phase, Warned
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.search_state import SearchState


# ---- how it looks ----------------------------------------------------------------------------------------------------
def drawn(state: SearchState, columns: int, *, rows: int = 30, now: float = 1080.0, notice: str = "") -> str:
    console = Console(file=io.StringIO(), width=columns, height=rows, record=True, force_terminal=True)
    console.print(draw(state, console, now, 1000.0, notice, ""))
    return console.export_text()


@pytest.fixture
def state():
    state = SearchState()
    for event in training():
        state.happened(event)
    return state


def test_what_others_wrote_steers_neither_the_terminal_nor_the_drawing(state):
    """Params, names and answers come from files and from tags in MLflow."""
    nasty = "\x1b[2J\x9b31m\u202e[/bold][red]"
    state.trials["00002"] = replace(state.trials["00002"], params={"rank": nasty})
    state.study = state.steered = nasty
    console = Console(file=io.StringIO(), width=160, height=30, force_terminal=True, color_system=None)
    console.print(draw(state, console, 1080.0, 1000.0, nasty, nasty))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert not set("\x9b\u202e") & set(text)
    assert "\x1b[2J" not in text
    assert "rank=\\x1b[2J\\x9b31m\\u202e[/bold][red]" in text


@pytest.mark.parametrize("columns", [60, 100])
def test_a_search_fits_every_width(state, columns):
    lines = drawn(state, columns).splitlines()
    assert all(len(line) <= columns for line in lines)
    assert re.fullmatch(r"[━╸╺ ]+ 43 %  about 2 min left  1:20", lines[1].rstrip())
    assert lines[3].rstrip() == "trials   2 of 4 ended (1 stopped early)"
    assert lines[4].rstrip() == "steps    180 of about 420 (160 in refits)"
    assert lines[5].startswith("best     00000  pearson 0.6000, 0.1800 better than tfidf (0")
    heading, first = lines[7], lines[8]
    expected = ["trial", "state", "step", "pearson", *(["bytes"] if columns >= 100 else []), "params"]
    assert heading.split() == expected
    assert first.split()[:4] == ["00002", "RUNNING", "40/80", "0.2000"]
    assert ("31,008" in first) is (columns >= 100)
    assert ("rank=12 lr=0.00123 modules=attention" in first) is (columns >= 80)


def test_before_the_first_trial_there_is_a_line(state):
    early = SearchState()
    assert drawn(early, 60).split() == ["1:20", "waiting", "for", "the", "search"]
    early.happened(Phase(study=None, at=1.0, text="starting Ray"))
    assert drawn(early, 60).strip() == "1:20  starting Ray"
    assert drawn(early, 60, notice="stopping").strip() == "1:20  stopping"
    # A small window has the first trials and the notice.
    lines = drawn(state, 60, rows=12, notice="stopping; Ctrl-C again ends at once").splitlines()
    assert len(lines) < 12
    assert "notice   stopping; Ctrl-C again ends at once" in [line.rstrip() for line in lines]
    assert [line.split()[0] for line in lines if line[:3] == "000"] == ["00002"]


def test_a_search_that_goes_on_counts_what_had_ended():
    lines = LinesView(out := io.StringIO(), "http://h:1")
    lines.happened(FACTS)
    for event in (begun(0, 1.0), ended(0, TrialState.COMPLETE, 2.0), begun(1, 1.0)):
        lines.known(event)
    lines.happened(ended(1, TrialState.COMPLETE, 3.0))
    assert ("[2/4]" in out.getvalue(), "trial 00000" in out.getvalue()) == (True, False)


CURSOR_OFF, CURSOR_ON = "\x1b[?25l", "\x1b[?25h"


# ---- a terminal ------------------------------------------------------------------------------------------------------
WATCHING = [sys.executable, "-m", "loraxs_search", "status", "mine", "--watch"]


def titles(terminal: Terminal) -> int:
    """Count the first lines of views on the screen."""
    return sum(line.startswith("mine: t on cpu") for line in terminal.lines)


def test_a_view_in_another_terminal_follows_is_resized_and_left(driver, terminals):
    with driver.folder.lock():
        terminals.append(Terminal(WATCHING, dict(os.environ), rows=24, columns=80))
        (terminal,) = terminals
        terminal.wait_to_see(r"00000 +RUNNING +20/160 +0\.5000")
        assert titles(terminal) == 1
        for trial, (rows, columns) in {"00001": (20, 60), "00002": (40, 160), "00003": (24, 80)}.items():
            terminal.resize(rows, columns)
            driver.train(trial, 40)
            terminal.wait_to_see(rf"{trial} +RUNNING +40/160")
            assert titles(terminal) == 1, "nothing is left of what was drawn before"
            assert len([line for line in terminal.lines if line.startswith("00000")]) == 1
        assert not terminal.has_cursor
        terminal.press(b"\x03")
        assert terminal.wait() == 0
    assert terminal.has_cursor
    assert titles(terminal) == 0, "the view is wiped"
    assert "left the view; `loraxs-search status mine --watch` comes back to it" in terminal.lines
    assert "Traceback" not in terminal.text


def test_a_view_ends_with_its_search_and_shows_the_result(driver, terminals):
    with driver.folder.lock():
        terminals.append(Terminal(WATCHING, dict(os.environ), columns=120, no_color=True))
        (terminal,) = terminals
        terminal.wait_to_see("00000 +RUNNING")
        driver.journal.say(Warned(text="many answers were cut"))
        driver.end("00000", TrialState.COMPLETE)
        driver.finish()
    assert terminal.wait() == 0
    assert titles(terminal) == 0
    assert "warning: many answers were cut" in terminal.lines
    assert any(re.match("00000 +COMPLETE +20 +0.5000", line) for line in terminal.lines)
    assert any(line.startswith("mine: finished, 1/16 trials ended") for line in terminal.lines)
    assert terminal.text.count(CURSOR_OFF) == terminal.text.count(CURSOR_ON) == 1
    codes = {code for codes in re.findall(r"\x1b\[([0-9;]*)m", terminal.text) for code in codes.split(";")}
    assert codes <= {"", "0", "1", "2"}, "bold and dim are no colours"


@pytest.mark.long(part="search")
def test_a_second_ctrl_c_ends_at_once(searched, terminals, tiny_space_text, tmp_path, descendants):
    (tmp_path / "tiny.yaml").write_text(tiny_space_text)
    sized = ("--set", "search.trials=1", "--set", "search.max_steps=2000", "--set", "search.report_every=2000")
    command = searched.shell.command("launch", str(tmp_path / "tiny.yaml"), "--name", "ended", *sized)
    terminals.append(Terminal(command, searched.shell.environment()))
    terminal = terminals[0]
    terminal.wait_for("RUNNING", 120)
    stuck = [pid for title in ("HostActor", "SnapshotStore") for pid in descendants(terminal.pid, title)]
    try:
        for pid in stuck:
            os.kill(pid, signal.SIGSTOP)  # an end in order would wait for these
        terminal.press(b"\x03")
        terminal.wait_for("stopping; Ctrl-C again ends at once", 30)
        start = time.monotonic()
        terminal.press(b"\x03")
        assert terminal.wait(30) == 130
        assert time.monotonic() - start < 3
    finally:
        for pid in stuck:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in terminal.text
    assert terminal.text.rstrip().endswith("error: interrupted twice, ended at once")
