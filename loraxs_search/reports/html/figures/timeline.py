"""Figures of time: which trial ran when and where, how many devices were at work, what early stopping saved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from loraxs_search.errors import counted
from loraxs_search.records import TrialRecord, TrialState
from loraxs_search.reports.html.facts import Interval, ReportFacts, computed, duration, spending, stopped_at
from loraxs_search.reports.html.figures._base import (
    ACCENT,
    GREY,
    PALE,
    RED,
    CannotDrawError,
    Drawing,
    ReportFigure,
    shown,
    styled,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Bar


_UNITS = (
    (2 * 86400.0, 86400.0, "days"),
    (2 * 3600.0, 3600.0, "hours"),
    (120.0, 60.0, "minutes"),
    (0.0, 1.0, "seconds"),
)


@dataclass(frozen=True)
class _TimeAxis:
    """Time since a start, in the unit that suits its length.

    Args:
        start: Seconds since 1970.
        unit_s: Of the axis.
    """

    start: float
    unit_s: float
    unit: str

    @classmethod
    def over(cls, start: float, end: float) -> _TimeAxis:
        """Return the axis from one moment to another, both in seconds since 1970."""
        _, unit_s, unit = next(unit for unit in _UNITS if end - start >= unit[0])
        return cls(start, unit_s, unit)

    @property
    def title(self) -> str:
        return f"{self.unit} since the first trial"

    def at(self, moment: float) -> float:
        """Return where a moment lies."""
        return (moment - self.start) / self.unit_s

    def length(self, seconds: float) -> float:
        """Return how long a time is on it."""
        return seconds / self.unit_s


class EarlyStopping(ReportFigure):
    name = "early_stopping"
    title = "What early stopping saved"

    def draw(self, facts: ReportFacts) -> Drawing:
        from plotly.graph_objects import Bar, Figure

        if not facts.stopped:
            raise CannotDrawError("No trial was stopped early, so that nothing was saved.")
        groups = (("stopped early", stopped_at(facts.stopped), GREY), ("complete", stopped_at(facts.complete), ACCENT))
        hover = "step %{x}: %{y} trials<extra></extra>"
        bars = [
            Bar(x=[str(step) for step in ends], y=list(ends.values()), name=label, hovertemplate=hover).update(
                marker={"color": color}, text=list(ends.values()), textposition="outside", cliponaxis=False
            )
            for label, ends, color in groups
            if ends
        ]
        figure = styled(Figure(bars), "last step of a trial", "trials", height=280)
        steps = sorted({*groups[0][1], *groups[1][1]})
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=[str(step) for step in steps])
        figure.update_layout(barmode="group")
        return Drawing(_says_stopped(facts), {self.name: figure})


def _says_stopped(facts: ReportFacts) -> str:
    spent, most = spending(facts), facts.info.search.max_steps
    return (
        f"{len(facts.stopped):,} of {counted(len(facts.records), 'trial')} were stopped before step {most}. At their"
        f" own pace they would have needed {duration(spent.saved_s)} more of a device: saved {spent.saved_share:.0%}."
    )


_COLORS = {TrialState.COMPLETE: ACCENT, TrialState.PRUNED: GREY, TrialState.FAIL: RED, TrialState.RUNNING: PALE}
_UNKNOWN = "host not recorded"
_LANE_PX, _MOST_PX = 16, 520


@dataclass(frozen=True)
class _Stay:
    """A trial on one host, from its start or its arrival there to its end or departure; seconds since 1970."""

    record: TrialRecord
    host: str
    since: float
    until: float


class Timeline(ReportFigure):
    name = "timeline"
    title = "Trials on hosts"

    def draw(self, facts: ReportFacts) -> Drawing:
        from plotly.graph_objects import Figure

        stays = [stay for record in facts.records for stay in _stays(record, facts.last_at)]
        if not stays:
            raise CannotDrawError("No trial has been started yet.")
        axis = _TimeAxis.over(min(stay.since for stay in stays), max(stay.until for stay in stays))
        lanes, ticks = _lanes(stays)

        def own(state: TrialState) -> list[tuple[_Stay, int]]:
            return [(stay, lane) for stay, lane in zip(stays, lanes, strict=True) if stay.record.state is state]

        states = [state for state in _COLORS if any(stay.record.state is state for stay in stays)]
        figure = Figure([_bars(facts.word(state), _COLORS[state], own(state), axis) for state in states])
        count = max(lanes) + 1
        styled(figure, axis.title, height=min(110 + _LANE_PX * count, _MOST_PX))
        figure.update_layout(barmode="overlay", bargap=0.25)
        figure.update_xaxes(range=[0, axis.at(max(stay.until for stay in stays)) or 1])
        figure.update_yaxes(
            tickvals=list(ticks.values()), ticktext=list(ticks), showgrid=False, range=[count - 0.4, -0.6]
        )
        return Drawing(_says_timeline(facts, stays, _most_at_once(stays)), {self.name: figure})


def _says_timeline(facts: ReportFacts, stays: Sequence[_Stay], most: int) -> str:
    hosts = {stay.host for stay in stays if stay.host}
    where = counted(len(hosts), "host")
    at_once = "one trial at a time" if most == 1 else f"at most {most} trials at a time"
    if not hosts:
        return f"{counted(len(facts.records), 'trial')}, {at_once}. Which host each ran on was not recorded."
    return f"{counted(len(facts.records), 'trial')} on {where}, {at_once}. A bar is a trial, from its start to its end."


def _stays(record: TrialRecord, now: float) -> Iterator[_Stay]:
    """Yield where a trial was; between two reports from different hosts it counts as with the later one."""
    end = record.ended_at if record.ended_at is not None else max(now, record.started_at)
    since, host = record.started_at, record.reports[0].host if record.reports else ""
    for index, report in enumerate(record.reports):
        if report.host != host:
            moved = record.reported_at[index - 1]
            yield _Stay(record, host, since, moved)
            since, host = moved, report.host
    yield _Stay(record, host, since, end)


def _lanes(stays: Sequence[_Stay]) -> tuple[list[int], dict[str, float]]:
    """Return a lane for each stay, in which no other is at the time, host by host; and the middle of each host's."""
    by_host: defaultdict[str, list[int]] = defaultdict(list)
    for index, stay in enumerate(stays):
        by_host[stay.host].append(index)
    lanes, ticks, first = [0] * len(stays), dict[str, float](), 0
    for host, indexes in sorted(by_host.items()):
        free_at: list[float] = []
        for index in sorted(indexes, key=lambda index: stays[index].since):
            lane = next((i for i, until in enumerate(free_at) if until <= stays[index].since), len(free_at))
            free_at[lane : lane + 1] = [stays[index].until]
            lanes[index] = first + lane
        ticks[shown(host or _UNKNOWN)] = first + (len(free_at) - 1) / 2
        first += len(free_at)
    return lanes, ticks


def _bars(label: str, color: str, placed: Sequence[tuple[_Stay, int]], axis: _TimeAxis) -> Bar:
    from plotly.graph_objects import Bar

    return Bar(
        base=[axis.at(stay.since) for stay, _ in placed],
        x=[axis.length(stay.until - stay.since) for stay, _ in placed],
        y=[lane for _, lane in placed],
        text=[f"{stay.record.trial_id} {label}: {shown(stay.record.reason)}".removesuffix(": ") for stay, _ in placed],
        textposition="none",
        orientation="h",
        name=label,
        marker={"color": color},
        hovertemplate="%{text}<extra></extra>",
    )


def _most_at_once(stays: Sequence[_Stay]) -> int:
    """Return how many trials ran at a time, at most; one that ends when another begins makes room for it."""
    changes = sorted([(stay.since, 1) for stay in stays] + [(stay.until, -1) for stay in stays])
    return max(accumulate(change for _, change in changes))


_BINS = 80


class Utilisation(ReportFigure):
    name = "utilisation"
    title = "Devices at work"

    def draw(self, facts: ReportFacts) -> Drawing:
        from plotly.graph_objects import Figure, Scatter

        work = [each for record in facts.records for each in computed(record)]
        if not work:
            raise CannotDrawError("No trial has reported what it computed.")
        start, end = min(since for (since, _), _ in work), max(until for (_, until), _ in work)
        if end <= start:
            raise CannotDrawError("All reports are of the same moment.")
        axis = _TimeAxis.over(start, end)
        width = (end - start) / _BINS
        busy = _busy(work, start, width)
        edges = [axis.at(start + index * width) for index in range(_BINS + 1)]
        look = {"mode": "lines", "line": {"color": ACCENT, "width": 1.5, "shape": "hv"}, "fill": "tozeroy"}
        hover = "%{y:.2f} devices<extra></extra>"
        figure = Figure(Scatter(x=edges, y=[*busy, busy[-1]], hovertemplate=hover, **look))
        styled(figure, axis.title, "devices", height=220)
        figure.update_xaxes(range=[edges[0], edges[-1]])
        figure.update_yaxes(rangemode="tozero")
        return Drawing(_says_utilisation(facts), {self.name: figure})


def _says_utilisation(facts: ReportFacts) -> str:
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
