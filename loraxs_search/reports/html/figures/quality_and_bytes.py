"""What a trial scores against what it stores, and the trials that are worth their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraxs_search.registry import trial_of
from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.reports.html.figures._base import CannotDrawError, Drawing, ReportFigure
from loraxs_search.reports.html.figures._style import ACCENT, GREY, log_axis, styled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FEW = 10.0  # sizes that lie further apart are drawn on a logarithmic axis


class QualityAndBytes(ReportFigure):
    name = "quality_and_bytes"
    title = "Quality against bytes"

    def draw(self, facts: StudyFacts) -> Drawing:
        if not facts.complete:
            raise CannotDrawError("No trial has trained all its steps yet, and of the others nothing is kept.")
        points = {r.trial_id: (r.reports[-1].size.stored_bytes, facts.score(r)) for r in facts.complete}
        figure = _figure(facts, points)
        styled(figure, "stored bytes of adapter and head", f"{facts.metric} on validation rows", height=380)
        sizes = [stored for stored, _ in points.values()]
        if min(sizes) == max(sizes):  # one tick, not a range of a millionth of a byte
            figure.update_xaxes(range=[0.9 * sizes[0], 1.1 * sizes[0]], tickvals=sizes[:1])
        elif max(sizes) > _FEW * min(sizes):
            log_axis(figure.layout.xaxis, min(sizes), max(sizes))
        scores = [score for _, score in points.values()]
        if min(scores) == max(scores):
            figure.update_yaxes(range=[scores[0] - 0.05, scores[0] + 0.05])
        elif facts.sign < 0:
            figure.update_yaxes(autorange="reversed")
        return Drawing(_says(facts, points), {self.name: figure})


def _figure(facts: StudyFacts, points: dict[str, tuple[int, float]]) -> Figure:
    from plotly.graph_objects import Figure, Scatter

    def trace(names: list[str], label: str, **look: object) -> Scatter:
        x, y = ([points[name][axis] for name in names] for axis in (0, 1))
        hover = "%{text}: %{y:.4f}, %{x:,} bytes<extra></extra>"
        return Scatter(x=x, y=y, text=names, name=label, hovertemplate=hover, **look)

    others = [name for name in points if name not in facts.front_ids]
    front = {"color": ACCENT, "size": 9}
    figure = Figure()
    if others:
        figure.add_trace(trace(others, "complete trials", mode="markers", marker={"color": GREY, "size": 7}))
    line = {"color": ACCENT, "shape": "hv", "width": 1.5}
    figure.add_trace(trace(facts.front_ids, "front", mode="lines+markers", marker=front, line=line))
    if facts.finalist is not None and (name := trial_of(facts.finalist.trial_id)) in points:
        star = {"symbol": "circle-open", "color": ACCENT, "size": 17, "line": {"width": 2}}
        label = "finalist" if name == facts.finalist.trial_id else "the finalist's recipe"
        figure.add_trace(trace([name], label, mode="markers", marker=star))
    return figure


def _says(facts: StudyFacts, points: dict[str, tuple[int, float]]) -> str:
    smallest, best = facts.front_ids[0], facts.front_ids[-1]
    if smallest == best:
        stored, score = points[best]
        return f"Trial {best} has the best score, {score:.4f}, and none stores fewer bytes than its {stored:,}."
    small, large = points[smallest], points[best]
    return (
        f"{len(facts.front_ids)} of {len(points):,} complete trials are on the front: no other one is as good in fewer"
        f" bytes. It reaches from {small[1]:.4f} in {small[0]:,} bytes to {large[1]:.4f} in {large[0]:,}."
    )
