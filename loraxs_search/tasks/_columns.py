"""Columns of a data set as they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class MalformedFileError(Exception):
    """A file is not what its ending says; the message begins with the file's name left out."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@dataclass(frozen=True)
class Columns:
    """What was read of one file, or of one split of the hub.

    Args:
        available: Every column that there is.
        values: The columns that were asked for and are there, each with one value a row.
        lines: Where each row begins in its file; None where rows have no lines.
        stored_names: Label names that the data themselves give to their ids.
    """

    available: list[str]
    values: dict[str, list[Any]]
    lines: list[int] | None = None
    stored_names: list[str] | None = None
