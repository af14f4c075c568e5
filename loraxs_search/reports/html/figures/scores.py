"""Figures of scores: over steps, and against the bytes that a trial stores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.registry.finalist import trial_of
from loraxs_search.reports.html.facts import ReportFacts
from loraxs_search.reports.html.figures import _base as base

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter


_LOOKS: dict[TrialState, tuple[dict[str, Any], float]] = {  # line, opacity
    TrialState.PRUNED: ({"color": base.GREY, "width": 1}, 0.55),
    TrialState.FAIL: ({"color": base.RED, "width": 1.2}, 0.8),
    TrialState.COMPLETE: ({"color": base.ACCENT, "width": 1.2}, 0.55),
    TrialState.RUNNING: ({"color": base.PALE, "width": 1.5, "dash": "dot"}, 1.0),
}


class LearningCurves(base.ReportFigure):
    name = "learning_curves"
    title = "Learning curves"

    def draw(self, facts: ReportFacts) -> base.FigureSection:
        from plotly.graph_objects import Figure

        reported = [record for record in facts.records if record.reports]
        if not reported:
            return self.section("There are no curves yet: no trial has reported a score.")
        groups = {state: [r for r in reported if r.state is state] for state in _LOOKS}
        figure = Figure([_curves(facts, state, records) for state, records in groups.items() if records])
        best = next((r for r in reported if facts.best and r.trial_id == facts.best.trial_id), None)
        if best is not None and len(reported) > 1:
            line = {"color": base.ACCENT, "width": 3.5}
            figure.add_trace(_lines(facts, [best], f"best, {best.trial_id}", line, 1.0))
        figure.add_traces(_levels(facts, reported))
        base.styled(figure, "step", f"{facts.metric} on validation rows", height=400)
        if facts.baselines:
            figure.update_layout(margin={"r": 64})  # for their names
        return self.section(_says_curves(facts, groups), {self.name: figure})


def _says_curves(facts: ReportFacts, groups: dict[TrialState, list[TrialRecord]]) -> str:
    counts = [f"{len(records):,} {facts.word(state)}" for state, records in groups.items() if records]
    kept = " The step with the best score is kept." if facts.info.search.checkpoint == "best" else ""
    return f"One line for each trial that has reported: {', '.join(counts)}. Stopped trials are grey.{kept}"


def _curves(facts: ReportFacts, state: TrialState, records: Sequence[TrialRecord]) -> Scatter:
    line, opacity = _LOOKS[state]
    line = line | {"width": base.thinner(line["width"], len(records))}
    return _lines(facts, records, facts.word(state), line, opacity)


def _lines(
    facts: ReportFacts, records: Sequence[TrialRecord], label: str, line: dict[str, Any], opacity: float
) -> Scatter:
    from plotly.graph_objects import Scatter

    return Scatter(
        x=base.apart([[report.step for report in record.reports] for record in records]),
        y=base.apart([[report.metrics[facts.metric] for report in record.reports] for record in records]),
        text=base.apart([[record.trial_id] * len(record.reports) for record in records]),
        mode="lines+markers",
        marker={"size": 4},
        line=line,
        opacity=opacity,
        name=label,
        hovertemplate="%{text}, step %{x}: %{y:.4f}<extra></extra>",
    )


_LINE = 0.045  # of the axis: what a line of text takes


def _levels(facts: ReportFacts, reported: Sequence[TrialRecord]) -> list[Scatter]:
    """Return the lines of baselines across all steps; names that would overlap stand below each other."""
    from plotly.graph_objects import Scatter

    named = [(it.validation_metrics.get(facts.metric, math.nan), it.name) for it in facts.baselines]
    named = [(score, name) for score, name in named if math.isfinite(score)]
    if not named:
        return []
    scores = [report.metrics[facts.metric] for record in reported for report in record.reports] + [s for s, _ in named]
    height = (max(scores) - min(scores)) * _LINE
    groups = list[list[tuple[float, str]]]()
    for each in sorted(named, reverse=True):
        group = [each]
        while groups and _middle(groups[-1]) - _middle(group) < height * (len(groups[-1]) + len(group)) / 2:
            group = [*groups.pop(), *group]
        groups.append(group)
    steps = [report.step for record in reported for report in record.reports]
    ends = [min(steps), max(*steps, min(steps) + 1)]
    line, look = {"color": base.INK, "width": 1, "dash": "dash"}, {"showlegend": False, "cliponaxis": False}
    hover = "%{fullData.name}: %{y:.4f}<extra></extra>"
    lines = [
        Scatter(x=ends, y=[score] * 2, mode="lines", name=base.shown(name), line=line, hovertemplate=hover, **look)
        for score, name in named
    ]
    texts = ["<br>".join(base.shown(name) for _, name in group) for group in groups]
    labels = Scatter(x=ends[1:] * len(groups), y=[_middle(group) for group in groups], text=texts, mode="text", **look)
    return [*lines, labels.update(textposition="middle right", hoverinfo="skip")]


def _middle(group: Sequence[tuple[float, str]]) -> float:
    return sum(score for score, _ in group) / len(group)


_FEW = 10.0  # sizes that lie further apart are drawn on a logarithmic axis


class QualityAndBytes(base.ReportFigure):
    name = "quality_and_bytes"
    title = "Quality against bytes"

    def draw(self, facts: ReportFacts) -> base.FigureSection:
        if not facts.complete:
            return self.section("No trial has trained all its steps yet, and of the others nothing is kept.")
        points = {r.trial_id: (r.reports[-1].size.stored_bytes, facts.score(r)) for r in facts.complete}
        figure = _points(facts, points)
        base.styled(figure, "stored bytes of adapter and head", f"{facts.metric} on validation rows", height=380)
        sizes = [stored for stored, _ in points.values()]
        if min(sizes) == max(sizes):  # one tick, not a range of a millionth of a byte
            figure.update_xaxes(range=[0.9 * sizes[0], 1.1 * sizes[0]], tickvals=sizes[:1])
        elif max(sizes) > _FEW * min(sizes):
            base.log_axis(figure.layout.xaxis, min(sizes), max(sizes))
        scores = [score for _, score in points.values()]
        if min(scores) == max(scores):
            figure.update_yaxes(range=[scores[0] - 0.05, scores[0] + 0.05])
        elif facts.sign < 0:
            figure.update_yaxes(autorange="reversed")
        return self.section(_says_front(facts, points), {self.name: figure})


def _points(facts: ReportFacts, points: dict[str, tuple[int, float]]) -> Figure:
    from plotly.graph_objects import Figure, Scatter

    def trace(names: list[str], label: str, **look: object) -> Scatter:
        x, y = ([points[name][axis] for name in names] for axis in (0, 1))
        hover = "%{text}: %{y:.4f}, %{x:,} bytes<extra></extra>"
        return Scatter(x=x, y=y, text=names, name=label, hovertemplate=hover, **look)

    others = [name for name in points if name not in facts.front_ids]
    front = {"color": base.ACCENT, "size": 9}
    figure = Figure()
    if others:
        figure.add_trace(trace(others, "complete trials", mode="markers", marker={"color": base.GREY, "size": 7}))
    line = {"color": base.ACCENT, "shape": "hv", "width": 1.5}
    figure.add_trace(trace(facts.front_ids, "front", mode="lines+markers", marker=front, line=line))
    if facts.finalist is not None and (name := trial_of(facts.finalist.trial_id)) in points:
        star = {"symbol": "circle-open", "color": base.ACCENT, "size": 17, "line": {"width": 2}}
        label = "finalist" if name == facts.finalist.trial_id else "the finalist's recipe"
        figure.add_trace(trace([name], label, mode="markers", marker=star))
    return figure


def _says_front(facts: ReportFacts, points: dict[str, tuple[int, float]]) -> str:
    smallest, best = facts.front_ids[0], facts.front_ids[-1]
    if smallest == best:
        stored, score = points[best]
        return f"Trial {best} has the best score, {score:.4f}, and none stores fewer bytes than its {stored:,}."
    small, large = points[smallest], points[best]
    return (
        f"{len(facts.front_ids)} of {len(points):,} complete trials are on the front: no other one is as good in fewer"
        f" bytes. It reaches from {small[1]:.4f} in {small[0]:,} bytes to {large[1]:.4f} in {large[0]:,}."
    )
