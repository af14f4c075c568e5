"""Columns of a data set as they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class MalformedFileError(Exception):
    """A file is not of the format that its ending names; the message leaves the file's name to the caller."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@dataclass(frozen=True)
class Columns:
    """Columns read from one file, or from one split of the hub.

    Args:
        available: Every column of the source.
        values: The requested columns that exist, each with one value a row.
        lines: The line where each row begins in its file; None where rows have no lines.
        stored_names: Label names that the data themselves give to their ids.
    """

    available: list[str]
    values: dict[str, list[Any]]
    lines: list[int] | None = None
    stored_names: list[str] | None = None
