"""Numbers as a row of small bars."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-~=+*#"


def sparkline(values: Sequence[float], low: float, high: float, *, width: int, ascii_only: bool = False) -> str:
    """Return the last `width` values as bars between `low` and `high`; what is outside is as low or high as can be."""
    bars = _ASCII_BARS if ascii_only else _BARS
    return "".join(bars[_height(value, low, high, len(bars))] for value in values[-width:])


def _height(value: float, low: float, high: float, num_bars: int) -> int:
    if not math.isfinite(value) or value <= low:
        return 0
    return num_bars - 1 if high <= low or value >= high else int((value - low) / (high - low) * num_bars)
