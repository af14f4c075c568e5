"""A program in a pseudo-terminal, and what a person sees there."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import termios
import textwrap
import time
from collections.abc import Callable

import pyte

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
