"""Tables and talk steer no terminal, whatever the names, tags and params in them are."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support.studies import study
from support.terminal import Terminal

from loraxs_search.cli._plain import PlainText, plain
from loraxs_search.records import Command


def test_control_characters_are_written_out_and_text_stays() -> None:
    assert plain("\x1b]0;mine\x07\r\x9b2J\u202e") == "\\x1b]0;mine\\x07\\r\\x9b2J\\u202e"
    assert plain("Größe\t日本\n") == "Größe\t日本\n"


def test_a_terminals_stream_takes_all_text_plain() -> None:
    raw = io.BytesIO()
    stream = PlainText(io.TextIOWrapper(raw, "utf-8"))
    print("a\x1b[31mb", "c", file=stream)
    assert raw.getvalue() == b"a\\x1b[31mb c\n"


def test_a_command_of_somebody_else_in_status(fresh_home: Any, terminal: Callable[..., Terminal]) -> None:
    folder = study("s")
    folder.inbox().put(Command("c1", "pause", sent_by="\x1b]0;stolen\x07\x1b[2Jsomebody"))
    seen = terminal([sys.executable, "-m", "loraxs_search", "status", "s"])
    assert seen.wait() == 0
    assert "not answered yet: pause (\\x1b]0;stolen\\x07\\x1b[2Jsomebody)" in " ".join(seen.lines)
    assert "\x1b]0" not in seen.text


@pytest.fixture
def terminal() -> Any:
    opened: list[Terminal] = []

    def start(command: list[str]) -> Terminal:
        opened.append(Terminal(command, dict(os.environ), columns=160))
        return opened[-1]

    yield start
    for each in opened:
        each.close()
