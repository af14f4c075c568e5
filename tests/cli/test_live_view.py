"""What a search shows: a live view on a terminal, plain lines in a pipe, and the words that both use."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace

import pyte
import pytest
from rich.console import Console
from support.studies import FACTS, begun, ended, reported, training

from loraxs_search.cli._live import LiveView, draw
from loraxs_search.cli.live_text import LinesView, time_left_in_words
from loraxs_search.log.events import DataRead, Phase, RowsScored, Warned
from loraxs_search.records.task import DataReport
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.search_state import SearchState

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A program in a pseudo-terminal, all it has written there, and the screen that this makes."""

    def __init__(self, command: list[str], environment: dict[str, str], *, rows: int = 30, columns: int = 100) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (rows, columns))
        self.text, self._screen = "", pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)
        environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command],  # a session of its own, with this terminal to be interrupted from
            **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
            env={"TERM": "xterm-256color", **environment},
        )
        os.close(slave)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lines(self) -> list[str]:
        """The lines of the screen that are not empty."""
        return [line.rstrip() for line in self._screen.display if line.strip()]

    @property
    def has_cursor(self) -> bool:
        return not self._screen.cursor.hidden

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size; the kernel signals the program.

        Lines that are too long now are wrapped, as most terminals do: what was drawn takes other rows than before.
        """
        shown, hidden = self._screen.display[: self._screen.cursor.y + 1], not self.has_cursor
        wrapped = [part for line in shown for part in textwrap.wrap(line.rstrip(), columns) or [""]]
        self._screen.resize(rows, columns)
        self._screen.reset()
        self._stream.feed("\r\n".join(wrapped) + ("\x1b[?25l" if hidden else ""))
        termios.tcsetwinsize(self._master, (rows, columns))

    def wait_for(self, pattern: str, timeout_s: float = 120.0) -> None:
        """Wait until something was written, ever."""
        self._until(lambda: re.search(pattern, _COLOURS.sub("", self.text)) is not None, timeout_s)

    def wait_to_see(self, pattern: str, timeout_s: float = 120.0) -> None:
        """Wait until something stands on the screen."""
        self._until(lambda: re.search(pattern, "\n".join(self.lines)) is not None, timeout_s)

    def wait(self, timeout_s: float = 120.0) -> int:
        """Wait for the end, and return the exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read(0.5):
            assert time.monotonic() < deadline, self.text[-2000:]
        return self._process.wait(timeout=30)

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._master)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _until(self, seen: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not seen():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            assert self._read(0.5), self.text[-2000:]

    def _read(self, timeout_s: float) -> bool:
        """Take what there is; False when the other side is closed."""
        if select.select([self._master], [], [], timeout_s)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # how Linux says that the terminal has no user left
                return False
            text = data.decode(errors="replace")
            self.text += text
            self._stream.feed(text)
            return bool(data)
        return self._process.poll() is None


# ---- how it looks ----------------------------------------------------------------------------------------------------
def drawn(state: SearchState, columns: int, *, rows: int = 30, notice: str = "", uri: str = "") -> str:
    out = io.StringIO()
    console = Console(file=out, width=columns, height=rows, force_terminal=True, color_system=None)
    console.print(draw(state, console, 1080.0, 1000.0, notice, uri))
    return out.getvalue()


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
    text = drawn(state, 160, notice=nasty, uri=nasty)
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


# ---- lines -----------------------------------------------------------------------------------------------------------
def test_lines_say_each_event_once_and_what_is_counted_now_and_then():
    lines = LinesView(out := io.StringIO(), "", began=1000.0)
    counted = Phase(study="mine", at=1033.0, text="training again", total=40, unit="steps")
    scored = RowsScored(
        study="mine", at=1032.0, what="candidate", name="00000.1", split="test", metrics={"pearson": 0.6}
    )
    for event in (
        Phase(study="mine", at=1000.0, text="starting Ray"),
        replace(FACTS, num_trials=2, num_slots=1, num_refits=0, notes=("one thing",)),
        begun(0, 1000.0),
        reported(0, 20, 0.5, 1020.0),
        ended(0, TrialState.COMPLETE, 1020.0, "trained all 20 steps"),
        begun(1, 1001.0),
        ended(1, TrialState.FAIL, 1030.0, "no finite loss"),
        replace(scored, what="baseline", split="validation", name="tfidf"),
        scored,
        Warned(study="mine", at=1033.0, text="logging has said so"),
        *(
            replace(counted, done=done, at=1000.0 + at)
            for done, at in ((0, 33), (10, 34), (20, 44), (30, 45), (40, 46))
        ),
    ):
        lines.happened(event)
    assert [line.split("s  ", 1)[1] for line in out.getvalue().splitlines()] == [
        "starting Ray",
        "study mine: 2 trials on cpu (float32), 1 slot",
        "note: one thing",
        "browse the trials: loraxs-search ui mine",
        "trial 00000  step 20  pearson 0.5000",
        "trial 00000  COMPLETE  step 20  pearson 0.5000  [1/2]  trained all 20 steps  about 80 s left",
        "trial 00001  FAIL  step 0  [2/2]  no finite loss",
        "baseline tfidf  validation rows  pearson 0.6000",
        "candidate 00000.1  test rows  pearson 0.6000",
        *(f"training again: {done} of 40 steps" for done in (10, 20, 40)),
    ]
    assert out.getvalue().splitlines()[4].startswith("  20.0s  ")
    left = [time_left_in_words(seconds) for seconds in (None, 9.9, 89.4, 90.0, 5400.0)]
    assert left == ["", *(f"{it} left" for it in ("a few seconds", "about 89 s", "about 2 min", "about 1.5 h"))]


def test_a_search_that_goes_on_counts_what_had_ended_and_has_a_label_and_warnings_where_they_are_wanted(capsys):
    lines = LinesView(out := io.StringIO(), "http://h:1", label="mine", warns=True)
    lines.happened(FACTS)
    for event in (begun(0, 1.0), ended(0, TrialState.COMPLETE, 2.0), begun(1, 1.0)):
        lines.known(event)
    lines.happened(ended(1, TrialState.COMPLETE, 3.0))
    lines.happened(Warned(study="mine", at=114.0, text="look"))
    assert ("[2/4]" in out.getvalue(), "trial 00000" in out.getvalue()) == (True, False)
    assert out.getvalue().endswith("s  mine  warning: look\n")
    sizes = {"train": 8373, "validation": 1000, "test": 1000}
    read = DataRead(study="mine", at=1001.0, metric="accuracy", num_rows=sizes, report=DataReport(sizes))
    lines.happened(read)
    with LiveView("ui") as live:
        live.happened(read)
    for said in (out.getvalue(), capsys.readouterr().err):
        assert [line.split()[-3:] for line in said.splitlines() if "rows " in line] == [["8,373", "1,000", "1,000"]]


# ---- a terminal ------------------------------------------------------------------------------------------------------
CURSOR_OFF, CURSOR_ON = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def terminal():
    """Opens a terminal with a program in it, which is closed behind the test."""
    with contextlib.ExitStack() as closing:

        def opened(command: list[str], environment: dict[str, str], **screen: int) -> Terminal:
            made = Terminal(command, environment, **screen)
            closing.callback(made.close)
            return made

        yield opened


@pytest.fixture
def watching(terminal):
    """Opens one in which somebody watches the study."""
    command = [sys.executable, "-m", "loraxs_search", "status", "mine", "--watch"]
    return lambda **screen: terminal(command, dict(os.environ), **screen)


def titles(terminal: Terminal) -> int:
    """Count the first lines of views on the screen."""
    return sum(line.startswith("mine: t on cpu") for line in terminal.lines)


def test_a_view_in_another_terminal_follows_is_resized_and_left(driver, watching):
    with driver.folder.lock():
        terminal = watching(rows=24, columns=80)
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


def test_a_view_ends_with_its_search_and_shows_the_result(driver, watching, monkeypatch):
    with driver.folder.lock():
        monkeypatch.setenv("NO_COLOR", "1")
        terminal = watching(columns=120)
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
def test_a_second_ctrl_c_ends_at_once(searched, terminal, tiny_space, descendants):
    sized = ("--set", "search.trials=1", "--set", "search.max_steps=2000", "--set", "search.report_every=2000")
    command = searched.shell.command("launch", str(tiny_space), "--name", "ended", *sized)
    view = terminal(command, searched.shell.environment())
    view.wait_for("RUNNING", 120)
    stuck = [pid for title in ("HostActor", "SnapshotStore") for pid in descendants(view.pid, title)]
    try:
        for pid in stuck:
            os.kill(pid, signal.SIGSTOP)  # an end in order would wait for these
        view.press(b"\x03")
        view.wait_for("stopping; Ctrl-C again ends at once", 30)
        view.press(b"\x03")
        assert view.wait(30) == 130
    finally:
        for pid in stuck:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in view.text
    assert view.text.rstrip().endswith("error: interrupted twice, ended at once")
