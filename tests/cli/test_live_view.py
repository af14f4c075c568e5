"""What a search shows: a live table on a terminal, plain lines in a pipe."""

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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from loraxs_search.cli._lines import LinesView
from loraxs_search.cli._live import LiveView
from loraxs_search.records import AdapterSize, DataSource, Task, TrialRecord, TrialReport, TrialState
from loraxs_search.search import SearchStarted

TASK = Task("reviews", "regression", DataSource(hub="a/b"), "text", "label", "pearson", "maximize", ("pearson",))
FACTS = SearchStarted("mine", TASK, num_trials=2, max_steps=4, device="cpu", dtype="float32", num_slots=1)


def record(trial_id: str, state: TrialState, step: int, reason: str = "") -> TrialRecord:
    report = TrialReport(trial_id, step, {"pearson": 0.5}, 1.0, 1.0, 10, AdapterSize(16, 4, 80))
    return TrialRecord(trial_id, {"rank": 4, "learning_rate": 0.00123}, state, reason, (report,) if step else ())


# ---- a pipe ----------------------------------------------------------------------------------------------------------
def test_lines_say_each_event_once():
    out = io.StringIO()
    view = LinesView(out, "loraxs-search ui")
    view.phase("starting Ray")
    view.started(FACTS)
    assert view.is_training
    view.trial_changed(record("00000", TrialState.RUNNING, 0))
    view.trial_changed(record("00000", TrialState.RUNNING, 2))
    view.trial_changed(record("00000", TrialState.COMPLETE, 4, "trained all 4 steps"))
    view.trial_changed(record("00001", TrialState.FAIL, 0, "no finite loss"))
    view.phase("done")
    assert not view.is_training
    assert [line.split("s  ", 1)[1] for line in out.getvalue().splitlines()] == [
        "starting Ray",
        "study mine: 2 trials on cpu (float32), 1 slot",
        "browse the trials: loraxs-search ui",
        "trial 00000  step 2  pearson 0.5000",
        "trial 00000  COMPLETE  step 4  pearson 0.5000  [1/2]  trained all 4 steps",
        "trial 00001  FAIL  step 0  [2/2]  no finite loss",
        "done",
    ]


@pytest.mark.parametrize(
    "known", [(), (record("00000", TrialState.COMPLETE, 4), record("00001", TrialState.RUNNING, 2))]
)
def test_a_search_that_goes_on_counts_what_had_ended(known: tuple[TrialRecord, ...]) -> None:
    out, screen = io.StringIO(), io.StringIO()
    lines, live = LinesView(out, "loraxs-search ui"), LiveView("loraxs-search ui")
    for view in (lines, live):
        view.started(replace(FACTS, trials=known))
        view.trial_changed(record("00001", TrialState.COMPLETE, 4))
    Console(file=screen, width=100).print(live)
    drawn, ended = screen.getvalue(), len(known) or 1
    assert f"[{ended}/2]" in out.getvalue()
    assert f"{ended}/2 trials" in drawn
    assert ("00000" in drawn) is bool(known)


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


# ---- a terminal ------------------------------------------------------------------------------------------------------
class Terminal:
    """A program in a pseudo-terminal of 100 columns, and all it has written there."""

    def __init__(self, command: list[str], environment: dict[str, str], *, stdout: Path | None = None) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (30, 100))
        environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        with stdout.open("wb") if stdout else os.fdopen(os.dup(slave), "wb") as out:
            self._process = subprocess.Popen(
                ["setsid", "--ctty", *command],  # a session of its own, with this terminal to be interrupted from
                stdin=slave,
                stdout=out,
                stderr=slave,
                env=environment | {"TERM": "xterm-256color"},
            )
        os.close(slave)
        self.text = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def wait_for(self, pattern: str, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, _COLOURS.sub("", self.text)):
            assert time.monotonic() < deadline, self.text[-2000:]
            assert self._read(0.5), self.text[-2000:]

    def wait(self, timeout_s: float = 120.0) -> int:
        deadline = time.monotonic() + timeout_s
        while self._read(0.5):
            assert time.monotonic() < deadline, self.text[-2000:]
        return self._process.wait(timeout=30)

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._master)

    def _read(self, timeout_s: float) -> bool:
        """Take what there is; False when the other side is closed."""
        if select.select([self._master], [], [], timeout_s)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # how Linux says that the terminal has no user left
                return False
            self.text += data.decode(errors="replace")
            return bool(data)
        return self._process.poll() is None


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


CURSOR_OFF, CURSOR_ON = "\x1b[?25l", "\x1b[?25h"
_PROGRAM = """
import logging, sys, time
from loraxs_search.cli._live import LiveView
from loraxs_search.cli._main import Talk
from tests_live import FACTS, record
from loraxs_search.records import TrialState
logging.basicConfig(handlers=[Talk()])
with LiveView("loraxs-search ui") as view:
    view.phase("starting Ray")
    time.sleep(0.4)
    view.started(FACTS)
    view.trial_changed(record("00000", TrialState.COMPLETE, 4))
    view.trial_changed(record("00001", TrialState.RUNNING, 2))
    time.sleep(0.4)
    logging.warning("something happened")
    time.sleep(0.4)
    view.finished()
print("THE DATA")
"""


def test_the_live_table_is_drawn_and_wiped(terminals, tmp_path):
    (tmp_path / "tests_live.py").write_text(Path(__file__).read_text())
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    terminals.append(Terminal([sys.executable, "-c", textwrap.dedent(_PROGRAM)], environment))
    assert terminals[0].wait(30) == 0, terminals[0].text
    text = terminals[0].text
    for part in ("starting Ray", "mine on cpu", "00000", "COMPLETE", "0.5000", "rank=4", "━", "1/2 trials", "training"):
        assert part in text, part
    assert "browse the trials: loraxs-search ui" in text
    assert "warning: something happened" in text
    assert text.count(CURSOR_OFF) == text.count(CURSOR_ON) == 1
    erased, data = text.rsplit(CURSOR_ON, 1)[1].rsplit("\x1b[2K", 1)
    assert erased.count("\x1b[1A\x1b[2K") >= 9, "the table is gone, line by line"
    assert data.strip() == "THE DATA"


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_in_order_and_resume_goes_on(searched, terminals, tiny_space_text, tmp_path):
    """The whole story on a real search: live table, Ctrl-C, status, resume in a pipe."""
    shell = searched.shell
    (tmp_path / "tiny.yaml").write_text(tiny_space_text)
    sized = ("--set", "search.trials=2", "--set", "search.max_steps=60", "--set", "search.scheduler=none")
    command = shell.command("launch", str(tmp_path / "tiny.yaml"), "--name", "stopped", *sized)
    out = tmp_path / "stdout"
    terminals.append(Terminal(command, shell.environment(), stdout=out))
    terminal = terminals[0]
    terminal.wait_for(r"RUNNING\s*│\s*[1-9]", 60)
    assert ["stopped", "tiny-reviews", "running"] in [line.split()[:3] for line in shell.ok("status").splitlines()]
    terminal.press(b"\x03")
    assert terminal.wait(60) == 130, terminal.text[-2000:]
    assert "error: Study 'stopped' was interrupted" in terminal.text
    assert "hint: go on with `loraxs-search resume stopped`" in terminal.text
    assert "Traceback" not in terminal.text
    assert terminal.text.count(CURSOR_OFF) == terminal.text.count(CURSOR_ON) == 1
    assert out.read_text() == ""

    assert ["stopped", "tiny-reviews", "interrupted"] in [line.split()[:3] for line in shell.ok("status").splitlines()]
    table = shell.ok("resume", "stopped")
    assert [line.split()[1] for line in table.splitlines()[1:]] == ["COMPLETE"] * 2 + ["YARDSTICK"] * 3


@pytest.mark.long
def test_a_second_ctrl_c_ends_at_once(searched, terminals, tiny_space_text, tmp_path, descendants):
    (tmp_path / "tiny.yaml").write_text(tiny_space_text)
    sized = ("--set", "search.trials=1", "--set", "search.max_steps=2000", "--set", "search.report_every=2000")
    command = searched.shell.command("launch", str(tmp_path / "tiny.yaml"), "--name", "ended", *sized)
    terminals.append(Terminal(command, searched.shell.environment()))
    terminal = terminals[0]
    terminal.wait_for("RUNNING", 120)
    stuck = [pid for title in ("HostActor", "StudyKeeper") for pid in descendants(terminal.pid, title)]
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
