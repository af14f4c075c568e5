"""Plots in a terminal: quality against bytes, and numbers as a row of small bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from string import ascii_lowercase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraxs_search.reports.comparison import Comparison


_WIDTH, _HEIGHT = 64, 16  # of the field in characters
_BOTH = "*"


def text_plot(comparison: Comparison) -> list[str]:
    """Return the lines of a plot of each group's trials, bytes from left to right on a log scale, the best ones on top.

    A group is a letter, in capitals where a trial is on its front; `*` is several groups in one place.
    """
    marks = dict(zip((group.label for group in comparison.groups), cycle(ascii_lowercase), strict=False))
    points = [
        (point.stored_bytes, point.score, marks[group.label].upper() if point in group.front else marks[group.label])
        for group in comparison.groups
        for point in (*group.points, *group.front)  # the front on top
    ]
    if not points:
        return []
    sizes, scores = [math.log(size) for size, _, _ in points], [score for _, score, _ in points]
    up = comparison.direction == "maximize"
    field = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for size, score, (_, _, mark) in zip(sizes, scores, points, strict=True):
        column, share = _place(size, sizes, _WIDTH), _place(score, scores, _HEIGHT)
        row = _HEIGHT - 1 - share if up else share
        field[row][column] = _merged(field[row][column], mark)
    top, bottom = (max(scores), min(scores)) if up else (min(scores), max(scores))
    edge = [f"{top:.4f}", *[""] * (_HEIGHT - 2), f"{bottom:.4f}"]
    lines = [f"{label:>8} │{''.join(row)}".rstrip() for label, row in zip(edge, field, strict=True)]
    smallest, largest = (f"{round(math.exp(bound(sizes))):,}" for bound in (min, max))
    lines += [f"{'':8} └{'─' * _WIDTH}", f"{'':10}{smallest}{largest:>{_WIDTH - len(smallest)}}  bytes"]
    legend = "   ".join(f"{mark} {label}" for label, mark in marks.items())
    return [f"{comparison.metric} of {legend}   (capitals: the best for their size)", *lines]


def _place(value: float, values: Sequence[float], cells: int) -> int:
    low, high = min(values), max(values)
    return round((value - low) / (high - low) * (cells - 1)) if high > low else 0


def _merged(there: str, mark: str) -> str:
    if there == " " or there.lower() == mark.lower():
        return max(there, mark, key=lambda c: (c.isupper(), c != " "))
    return _BOTH


_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-~=+*#"


def sparkline(values: Sequence[float], low: float, high: float, *, width: int, ascii_only: bool = False) -> str:
    """Return the last `width` values as bars between `low` and `high`; what is outside is as low or high as can be."""
    bars = _ASCII_BARS if ascii_only else _BARS
    return "".join(bars[_height(value, low, high, len(bars))] for value in values[-width:])


def _height(value: float, low: float, high: float, num_bars: int) -> int:
    if not math.isfinite(value) or value <= low:
        return 0
    return num_bars - 1 if high <= low or value >= high else int((value - low) / (high - low) * num_bars)
