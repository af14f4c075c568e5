"""Text from elsewhere, such as a tag in MLflow or a name in a file, without what would steer the terminal."""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO, cast

# Control characters but tabs and ends of lines, and those that turn the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Return a text with the characters that steer a terminal written out, such as `\\x1b`."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


class PlainText:
    """A stream to which all text goes as `plain` returns it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(plain(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def plain_stream(stream: TextIO) -> TextIO:
    """Return a stream for text that people read."""
    return cast("TextIO", PlainText(stream))


def keep_output_plain() -> None:
    """Have nothing that is said steer a terminal; data on stdout goes as it is, but to a terminal."""
    sys.stderr = plain_stream(sys.stderr)
    if sys.stdout.isatty():
        sys.stdout = plain_stream(sys.stdout)


def drawing_stream(stream: TextIO) -> TextIO:
    """Return what is below a plain stream, for what draws on a terminal and so has to steer it."""
    while isinstance(stream, PlainText):
        stream = stream.stream
    return stream
