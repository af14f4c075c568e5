"""Events for programs: one JSON object a line."""

from __future__ import annotations

from typing import TextIO

from loraxs_search.log import ShownEvent, printed
from loraxs_search.records import to_json


class EventStream:
    """Writes each event of a search as a line, at once; those of an earlier driver are not repeated."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def happened(self, event: ShownEvent) -> None:
        """Take the next event."""
        self._out.write(f"{to_json(printed(event))}\n")  # at once: another thread may have news too
        self._out.flush()

    def known(self, event: ShownEvent) -> None:
        """Pass over an event of an earlier driver."""

    def say(self, text: str) -> None:
        """Say nothing: notices are for people."""
