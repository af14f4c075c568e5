"""The command line in this process, for what needs no search."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from loraxs_search.cli import run


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def ok(self) -> str:
        """What is on stdout, after a success without a traceback."""
        assert self.code == 0, self.err
        assert "Traceback" not in self.err
        return self.out

    def is_error(self, code: int, *parts: str) -> bool:
        """Check the form every error has: `error: ...`, a blank line, `hint: ...`, nothing on stdout, no traceback."""
        message, hint = self.err.split("\n\nhint: ")
        assert message.splitlines()[-1] != ""
        assert "error: " in message
        assert hint.strip()
        assert "Traceback" not in self.err
        assert self.out == ""
        assert self.code == code, self.err
        for part in parts:
            assert part in self.err
        return True


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run a command line in this process."""
    monkeypatch.setenv("COLUMNS", "120")

    def command(*args: str) -> Said:
        capsys.readouterr()
        code = run(args)
        return Said(code, *capsys.readouterr())

    return command


@pytest.fixture
def ask(say: Callable[..., Said], searched: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run a command line in this process, about the shared search; README's commands run each verb as a process."""
    monkeypatch.setenv("LORAXS_HOME", str(searched.shell.home))
    monkeypatch.chdir(searched.shell.folder)
    return say


@pytest.fixture
def make_listener() -> Iterator[Callable[[], int]]:
    """Take free ports on this machine and return their numbers."""
    sockets: list[socket.socket] = []

    def listen() -> int:
        sockets.append(socket.create_server(("127.0.0.1", 0)))
        return int(sockets[-1].getsockname()[1])

    yield listen
    for taken in sockets:
        taken.close()
