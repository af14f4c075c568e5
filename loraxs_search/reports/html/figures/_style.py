"""How all figures look: on light and dark ground alike, one accent, greys, and red for what failed.

The page's style sheet replaces the colours of texts and lines by those of its theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ACCENT = "#3b82d6"
PALE = "#8fb8ea"  # of the accent: still under way
GREY = "#98a1ab"
RED = "#cf5a44"
INK = "#6b7684"
GRID = "rgba(128,136,148,0.25)"
_CLEAR = "rgba(0,0,0,0)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def styled(figure: Figure, x: str = "", y: str = "", *, height: int = 340) -> Figure:
    """Give a figure the look of all, the titles of its axes, and its height in pixels; return it."""
    axis: dict[str, Any] = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "automargin": True}
    figure.update_layout(
        template="none",
        title=None,
        height=height,
        margin={"l": 56, "r": 14, "t": 12, "b": 44},
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        font={"family": _FONT, "size": 12, "color": INK},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    if x:
        figure.update_xaxes(title={"text": x, "standoff": 8})
    if y:
        figure.update_yaxes(title={"text": y, "standoff": 8})
    return figure


def thinner(width: float, count: int) -> float:
    """Return the width of lines or the size of points of which there are many: beyond a hundred, less."""
    return width / max(1.0, math.pow(count / 100, 0.4))


def log_axis(axis: Any, low: float, high: float) -> None:
    """Make an axis logarithmic, with a tick at 1, 2 and 5 of each power of ten that values come near to."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    near = [tick for tick in ticks if low / 1.5 <= tick <= high * 1.5]
    axis.update(type="log", tickvals=near, ticktext=[_short(tick) for tick in near])


def _short(value: float) -> str:
    for least, unit in ((1e6, "M"), (1e3, "k")):
        if value >= least:
            return f"{value / least:g}{unit}"
    return f"{value:g}"


def apart(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Join the values of several lines into one trace, with a gap after each: a thousand traces draw slowly."""
    return [value for part in parts for value in (*part, None)]
