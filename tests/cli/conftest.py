"""The command line in this process, for what needs no search."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.said import Said


@pytest.fixture
def ask(say: Callable[..., Said], searched: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run a command line in this process, about the shared search."""
    monkeypatch.setenv("LORAXS_HOME", str(searched.shell.home))
    monkeypatch.chdir(searched.shell.folder)
    return say


@pytest.fixture
def rows_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_warm_home: Path) -> Path:
    """An empty folder for somebody's rows, which a test is in; the base is at hand.

    `check --data` draws the rows of a standard error few times: a hundred F1 scores take longer than all else.
    """
    monkeypatch.setattr("loraxs_search.tasks.report._RESAMPLES", 2)
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path / "rows")
    return tmp_path / "rows"


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
