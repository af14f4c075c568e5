"""Text from elsewhere, such as a tag in MLflow or a name in a file, without what would steer the terminal."""

from __future__ import annotations

import io
import re
import sys
from typing import TextIO

# Control characters but tabs and ends of lines, and those that turn the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Return a text with the characters that steer a terminal written out, such as `\\x1b`."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


class PlainText(io.TextIOWrapper):
    """A stream of a terminal to which all text goes as `plain` returns it."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, stream.encoding, stream.errors, line_buffering=True)
        self.stream = stream

    def write(self, text: str) -> int:
        return super().write(plain(text))


def keep_terminals_plain() -> None:
    """Have nothing steer the terminal that stdout and stderr go to; pipes and files get all as it is."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.isatty():
            setattr(sys, name, PlainText(stream))


def drawing_stream() -> TextIO:
    """Return stderr for what draws on a terminal, and so has to steer it."""
    return sys.stderr.stream if isinstance(sys.stderr, PlainText) else sys.stderr
