"""Where rows stand, as messages say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loraxs_search.errors import shortened

_LISTED = 5  # different values that a message names


@dataclass(frozen=True)
class SourceLocation:
    """A file or a split of the hub, and the lines of its rows."""

    name: str
    lines: Sequence[int] | None = field(default=None, repr=False)

    def row(self, index: int) -> str:
        """Return what people call a row: its line in the file, or its number from 1."""
        return f"row {index + 1}" if self.lines is None else f"line {self.lines[index]}"

    def values(self, values: Sequence[Any], rows: Sequence[int]) -> str:
        """Return the different values of `rows` and where each is first: `'2' (line 5 and 3 more rows), 'q' (line 9)`.

        Five of them at most, then how many others there are.
        """
        by_value: dict[str, list[int]] = {}
        for row in rows:
            by_value.setdefault(shortened(values[row]), []).append(row)
        parts = [f"{value} ({self._first(where)})" for value, where in list(by_value.items())[:_LISTED]]
        others = len(by_value) - len(parts)
        return ", ".join(parts) + (f" and {others} other value{'s' * (others > 1)}" if others else "")

    def _first(self, rows: Sequence[int]) -> str:
        more = len(rows) - 1
        return self.row(rows[0]) + (f" and {more} more row{'s' * (more > 1)}" if more else "")
