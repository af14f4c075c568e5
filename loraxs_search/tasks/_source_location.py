"""Where rows stand, as messages say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import shortened

_LISTED = 5  # different values that a message names


@dataclass(frozen=True)
class SourceLocation:
    """A file or a split of the hub, and where in it rows stand.

    Args:
        lines: The line of each row; None where rows have no lines.
        numbers: The number of each row, from 0; None where rows stand as they do in the source.
    """

    name: str
    lines: Sequence[int] | None = field(default=None, repr=False)
    numbers: Sequence[int] | None = field(default=None, repr=False)

    def row(self, index: int) -> str:
        """Return what people call a row: its line in the file, or its number from 1."""
        return f"{'row' if self.lines is None else 'line'} {self.number(index)}"

    def number(self, index: int) -> int:
        """Return the line of a row, or its number from 1 where rows have no lines."""
        if self.lines is not None:
            return self.lines[index]
        return (index if self.numbers is None else self.numbers[index]) + 1

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> SourceLocation:
        """Return where these rows stand, in that order."""
        numbers = [int(i) for i in indices]
        if self.lines is not None:
            return SourceLocation(self.name, [self.lines[i] for i in numbers])
        return SourceLocation(self.name, None, numbers if self.numbers is None else [self.numbers[i] for i in numbers])

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
