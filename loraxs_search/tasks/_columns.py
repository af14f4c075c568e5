"""Columns of a data set as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


def with_parents(wanted: Sequence[str]) -> list[str]:
    """Return the columns to read for `wanted`: with `choices.text` also `choices`, which may hold it; the last stays
    last."""
    parents = [name.partition(".")[0] for name in wanted if "." in name]
    return [*dict.fromkeys(parent for parent in parents if parent not in wanted), *wanted]


def with_parts(columns: Columns, wanted: Sequence[str]) -> Columns:
    """Add the parts that `wanted` names with a dot: `choices.text` is what `text` holds in each value of `choices`.

    A column whose own name has the dot stays as it is. A part that no row has is not added.
    """
    values = dict(columns.values)
    for name in wanted:
        parent, *path = name.split(".")
        if name not in values and path and parent in values:
            parts = [_part(value, path) for value in values[parent]]
            if any(part is not None for part in parts):
                values[name] = parts
    added = [name for name in values if name not in columns.values]
    return replace(columns, available=[*columns.available, *added], values=values)


def _part(value: Any, path: Sequence[str]) -> Any:
    """Return what stands at `path` in a value; of a list of objects, a list of what stands there in each."""
    for key in path:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
            value = [item.get(key) for item in value]
        else:
            return None
    return value
