"""Scores over steps: who was stopped, and what the others became."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraxs_search.records import TrialRecord, TrialState, Yardstick
from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.reports.html.figures._base import CannotDrawError, Drawing, ReportFigure, shown
from loraxs_search.reports.html.figures._style import ACCENT, GREY, INK, PALE, RED, apart, styled, thinner

if TYPE_CHECKING:
    from plotly.graph_objects import Scatter

_LOOKS: dict[TrialState, tuple[dict[str, Any], float]] = {  # line, opacity
    TrialState.PRUNED: ({"color": GREY, "width": 1}, 0.55),
    TrialState.FAIL: ({"color": RED, "width": 1.2}, 0.8),
    TrialState.COMPLETE: ({"color": ACCENT, "width": 1.2}, 0.55),
    TrialState.RUNNING: ({"color": PALE, "width": 1.5, "dash": "dot"}, 1.0),
}


class LearningCurves(ReportFigure):
    name = "learning_curves"
    title = "Learning curves"

    def draw(self, facts: StudyFacts) -> Drawing:
        from plotly.graph_objects import Figure

        reported = [record for record in facts.records if record.reports]
        if not reported:
            raise CannotDrawError("There are no curves yet: no trial has reported a score.")
        groups = {state: [r for r in reported if r.state is state] for state in _LOOKS}
        figure = Figure([_curves(facts, state, records) for state, records in groups.items() if records])
        best = next((r for r in reported if facts.best and r.trial_id == facts.best.trial_id), None)
        if best is not None and len(reported) > 1:
            line = {"color": ACCENT, "width": 3.5}
            figure.add_trace(_lines(facts, [best], f"best, {best.trial_id}", line, 1.0))
        figure.add_traces([line for yardstick in facts.yardsticks for line in _level(facts, yardstick, reported)])
        styled(figure, "step", f"{facts.metric} on validation rows", height=400)
        if facts.yardsticks:
            figure.update_layout(margin={"r": 64})  # for their names
        return Drawing(_says(facts, groups), {self.name: figure})


def _says(facts: StudyFacts, groups: dict[TrialState, list[TrialRecord]]) -> str:
    counts = [f"{len(records):,} {facts.word(state)}" for state, records in groups.items() if records]
    kept = " The step with the best score is kept." if facts.info.search.keep == "best" else ""
    return f"One line for each trial that has reported: {', '.join(counts)}. Stopped trials are grey.{kept}"


def _curves(facts: StudyFacts, state: TrialState, records: Sequence[TrialRecord]) -> Scatter:
    line, opacity = _LOOKS[state]
    line = line | {"width": thinner(line["width"], len(records))}
    return _lines(facts, records, facts.word(state), line, opacity)


def _lines(
    facts: StudyFacts, records: Sequence[TrialRecord], label: str, line: dict[str, Any], opacity: float
) -> Scatter:
    from plotly.graph_objects import Scatter

    return Scatter(
        x=apart([[report.step for report in record.reports] for record in records]),
        y=apart([[report.metrics[facts.metric] for report in record.reports] for record in records]),
        text=apart([[record.trial_id] * len(record.reports) for record in records]),
        mode="lines+markers",
        marker={"size": 4},
        line=line,
        opacity=opacity,
        name=label,
        hovertemplate="%{text}, step %{x}: %{y:.4f}<extra></extra>",
    )


def _level(facts: StudyFacts, yardstick: Yardstick, reported: Sequence[TrialRecord]) -> list[Scatter]:
    """Return the line of a yardstick across all steps; none where it has no such score."""
    from plotly.graph_objects import Scatter

    score = yardstick.validation_metrics.get(facts.metric)
    if score is None:
        return []
    steps = [report.step for record in reported for report in record.reports]
    ends = [min(steps), max(*steps, min(steps) + 1)]
    name = shown(yardstick.name)
    line = {"color": INK, "width": 1, "dash": "dash"}
    hover = f"{name}: %{{y:.4f}}<extra></extra>"
    labels, texts = ["", name], {"textposition": "middle right", "showlegend": False, "cliponaxis": False}
    return [Scatter(x=ends, y=[score] * 2, mode="lines+text", text=labels, line=line, hovertemplate=hover, **texts)]
