"""The report's figures as PNG files: the same traces drawn with matplotlib, since plotly's own way needs a browser."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.home import write_atomic
from loraxs_search.reports.html.facts import read_facts
from loraxs_search.reports.html.figures import sections
from loraxs_search.studies import StudyFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

_DASHES = {"dot": ":", "dash": "--", None: "-"}
_WIDTH_PX, _DPI = 900, 110


def save_figures(folder: StudyFolder, target: Path) -> list[Path]:
    """Write each plot of a study's report to a PNG file named after it, and return the files.

    Raises:
        StudyError: a file of the study is damaged.
        HomeError: a file cannot be written.
    """
    facts, written = read_facts(folder), []
    for section in sections(facts):
        for name, plot in section.plots.items():
            path = target / f"{name}.png"
            write_atomic(path, png_of(plot, f"{folder.name}: {section.title}"))
            written.append(path)
    return written


def png_of(plot: Figure, title: str) -> bytes:
    """Draw a plot of the report.

    Raises:
        TypeError: it has traces of a kind that no figure of the report has.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second: late. No pyplot: no state, no display
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(_WIDTH_PX / 100, (plot.layout.height + 60) / 100), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    _order_categories(axes, plot)
    columns = [trace for trace in plot.data if trace.type == "bar" and trace.orientation != "h"]
    for trace in plot.data:
        if trace.type == "scatter":
            _draw_scatter(axes, trace)
        elif trace.type == "bar" and trace.orientation == "h":
            axes.barh(_values(trace.y), _values(trace.x), left=trace.base, height=0.75, **_look(trace))
        elif trace.type == "bar":
            _draw_columns(axes, plot, columns.index(trace), len(columns))
        else:
            raise TypeError(f"A figure of the report must be made of scatters and bars, but has a {trace.type}.")
    _label(axes, plot)
    canvas.suptitle(_text(title), fontsize="medium")
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


# ---- traces ----------------------------------------------------------------------------------------------------------
def _draw_scatter(axes: Axes, trace: Any) -> None:
    x, y = _values(trace.x), _values(trace.y)
    mode = trace.mode or "lines+markers"
    style: dict[str, Any] = {"alpha": trace.opacity or 1.0, "label": _name(trace)}
    if "lines" in mode:
        style |= {"color": trace.line.color, "linewidth": trace.line.width, "linestyle": _DASHES[trace.line.dash]}
        style |= {"drawstyle": "steps-post"} if trace.line.shape == "hv" else {}
        style |= {"marker": "o", "markersize": (trace.marker.size or 6) / 2} if "markers" in mode else {}
        axes.plot(x, y, **style)
        if trace.fill == "tozeroy":
            axes.fill_between(x, y, step="post", color=trace.line.color, alpha=0.25)
    else:
        colors, size = trace.marker.color, trace.marker.size or 6
        if trace.marker.symbol == "circle-open":
            style |= {"facecolors": "none", "edgecolors": colors, "linewidths": 2}
        elif isinstance(colors, str):
            style |= {"c": colors}
        else:
            scale = [color for _, color in trace.marker.colorscale]
            style |= {"c": list(colors), "cmap": _color_map(scale)}
        axes.scatter(x, y, s=size**2 / 2, **style)
    for at, label in zip(((x[-1], y[-1]),), (trace.text or ())[-1:], strict=False) if "text" in mode else ():
        axes.annotate(_text(label), at, ha="left", va="center", fontsize=8)


def _draw_columns(axes: Axes, plot: Figure, number: int, count: int) -> None:
    """Draw bars that stand beside those of the other groups, at the places of their categories."""
    trace, places = plot.data[number], list(plot.layout.xaxis.categoryarray)
    width = 0.8 / count
    at = [places.index(label) + (number - (count - 1) / 2) * width for label in trace.x]
    axes.bar_label(axes.bar(at, trace.y, width=0.95 * width, **_look(trace)))
    axes.set_xticks(range(len(places)), [_text(label) for label in places])


def _look(bars: Any) -> dict[str, Any]:
    return {"color": bars.marker.color, "label": _name(bars)}


def _name(trace: Any) -> str | None:
    return None if trace.showlegend is False or not trace.name else _text(trace.name)


def _color_map(colors: Sequence[str]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("report", list(colors))


# ---- axes ------------------------------------------------------------------------------------------------------------
def _order_categories(axes: Axes, plot: Figure) -> None:
    """Have matplotlib know labels in their order; else it takes that of the points."""
    xaxis = plot.layout.xaxis
    if xaxis.type == "category" and all(trace.type == "scatter" for trace in plot.data):
        axes.plot([_text(label) for label in xaxis.categoryarray], [math.nan] * len(xaxis.categoryarray))


def _label(axes: Axes, plot: Figure) -> None:
    layout = plot.layout
    _label_axis(axes, layout.xaxis, "x")
    _label_axis(axes, layout.yaxis, "y")
    if layout.yaxis.autorange == "reversed":
        axes.invert_yaxis()
    if layout.yaxis.visible is False:
        axes.get_yaxis().set_visible(False)
    else:
        axes.grid(alpha=0.3)
    for line in layout.shapes:
        axes.axvline(line.x0, color="0.7", linewidth=1, zorder=0)
    for note in layout.annotations:
        axes.annotate(_text(note.text), (note.x, note.y), (-4, 0), textcoords="offset points", ha="right", fontsize=7)
    if len([trace for trace in plot.data if _name(trace)]) > 1:
        axes.legend(fontsize="small")


def _label_axis(axes: Axes, axis: Any, name: str) -> None:
    if axis.title.text:
        axes.set(**{f"{name}label": _text(axis.title.text)})
    if axis.type == "log":
        axes.set(**{f"{name}scale": "log"})
        getattr(axes, f"{name}axis").set_minor_formatter("")
    elif axis.range:
        axes.set(**{f"{name}lim": axis.range})
    if axis.tickvals is not None:
        labels = axis.ticktext or axis.tickvals
        axes.set(**{f"{name}ticks": axis.tickvals, f"{name}ticklabels": [_text(str(label)) for label in labels]})


def _values(values: Any) -> list[Any]:
    """Return numbers with NaN for gaps, and labels as texts."""
    return [math.nan if value is None else _text(value) if isinstance(value, str) else value for value in values]


def _text(label: str) -> str:
    """Return what plotly shows for a label, and keep matplotlib from reading formulas in it."""
    return html.unescape(label).replace("$", r"\$")
