"""The contract of a figure of the report: a question about a study, drawn, or why it cannot be; and how all look.

An entry is one class, listed in `figures/__init__.py`. It reads `ReportFacts` and nothing else, writes nothing, and may
be asked again. Texts that users wrote go through `shown`, since plotly takes tags in its labels for markup. Figures
look well on light and dark ground alike: one accent, greys, and red for what failed. The page's style sheet replaces
the colours of texts and lines by those of its theme.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.records.literals import Scalar
from loraxs_search.reports.html.facts import ReportFacts

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class FigureSection:
    """A figure as the report has it.

    Args:
        says: What can be read from it, in one or two sentences; where nothing could be drawn, why.
        plots: One plot, or several small ones, by name. Names are unique over all figures of a report.
    """

    name: str
    title: str
    says: str
    plots: Mapping[str, Figure]


class ReportFigure(ABC):
    """A question that a figure answers.

    Args:
        name: Of the section and, where it has one plot, of that one.
        title: A heading, as shown to users.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def draw(self, facts: ReportFacts) -> FigureSection:
        """Draw a study, or say why it has too little for this figure."""

    def section(self, says: str, plots: Mapping[str, Figure] | None = None) -> FigureSection:
        """Return this figure's section."""
        return FigureSection(self.name, self.title, says, plots or {})


def shown(value: Scalar) -> str:
    """Return a value as a label: plotly reads the text as markup, so that what users wrote is escaped."""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value), quote=False)


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
    """Return the width of lines or the size of points: smaller beyond a hundred."""
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
