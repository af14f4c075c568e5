"""Which trial ran when, and on which host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from loraxs_search.errors import counted
from loraxs_search.records import TrialRecord, TrialState
from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.reports.html.figures._base import CannotDrawError, Drawing, ReportFigure, shown
from loraxs_search.reports.html.figures._style import ACCENT, GREY, PALE, RED, styled
from loraxs_search.reports.html.figures._time import TimeAxis

if TYPE_CHECKING:
    from plotly.graph_objects import Bar

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

    def draw(self, facts: StudyFacts) -> Drawing:
        from plotly.graph_objects import Figure

        stays = [stay for record in facts.records for stay in _stays(record, facts.last_at)]
        if not stays:
            raise CannotDrawError("No trial has been started yet.")
        axis = TimeAxis.over(min(stay.since for stay in stays), max(stay.until for stay in stays))
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
        return Drawing(_says(facts, stays, _most_at_once(stays)), {self.name: figure})


def _says(facts: StudyFacts, stays: Sequence[_Stay], most: int) -> str:
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


def _bars(label: str, color: str, placed: Sequence[tuple[_Stay, int]], axis: TimeAxis) -> Bar:
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
