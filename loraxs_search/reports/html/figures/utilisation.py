"""How many devices were at work on trials, over time."""

from __future__ import annotations

from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.reports.html.figures._base import CannotDrawError, Drawing, ReportFigure
from loraxs_search.reports.html.figures._style import ACCENT, styled
from loraxs_search.reports.html.figures._time import TimeAxis
from loraxs_search.reports.html.spending import Interval, computed, spending

_BINS = 80


class Utilisation(ReportFigure):
    name = "utilisation"
    title = "Devices at work"

    def draw(self, facts: StudyFacts) -> Drawing:
        from plotly.graph_objects import Figure, Scatter

        work = [each for record in facts.records for each in computed(record)]
        if not work:
            raise CannotDrawError("No trial has reported what it computed.")
        start, end = min(since for (since, _), _ in work), max(until for (_, until), _ in work)
        if end <= start:
            raise CannotDrawError("All reports are of the same moment.")
        axis = TimeAxis.over(start, end)
        width = (end - start) / _BINS
        busy = _busy(work, start, width)
        edges = [axis.at(start + index * width) for index in range(_BINS + 1)]
        look = {"mode": "lines", "line": {"color": ACCENT, "width": 1.5, "shape": "hv"}, "fill": "tozeroy"}
        hover = "%{y:.2f} devices<extra></extra>"
        figure = Figure(Scatter(x=edges, y=[*busy, busy[-1]], hovertemplate=hover, **look))
        styled(figure, axis.title, "devices", height=220)
        figure.update_xaxes(range=[edges[0], edges[-1]])
        figure.update_yaxes(rangemode="tozero")
        return Drawing(_says(facts), {self.name: figure})


def _says(facts: StudyFacts) -> str:
    spent = spending(facts)
    average = f"On average {spent.busy_devices:.2f} devices were at work on trials"
    if not spent.hosts:
        return f"{average}, from when the search began to its last record."
    share = spent.busy_devices / len(spent.hosts)
    return (
        f"{average}, which is {share:.0%} of {len(spent.hosts)}. The rest is loading, waiting for one another, final"
        " scores, and work that was lost. The time of a report is spread evenly since the one before."
    )


def _busy(work: list[tuple[Interval, float]], start: float, width: float) -> list[float]:
    """Return the devices at work in each of the equal parts of the time, each report's work spread evenly."""
    busy = [0.0] * _BINS
    for (since, until), seconds in work:
        first = min(int((since - start) / width), _BINS - 1)
        last = min(int((until - start) / width), _BINS - 1)
        for index in range(first, last + 1):
            low, high = start + index * width, start + (index + 1) * width
            shared = min(until, high) - max(since, low)
            busy[index] += seconds * (shared / (until - since) if until > since else 1.0) / width
    return busy
