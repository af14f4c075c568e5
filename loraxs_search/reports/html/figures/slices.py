"""The score over each parameter alone."""

from __future__ import annotations

from html import unescape
from typing import TYPE_CHECKING

from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.reports.html.figures._base import CannotDrawError, Drawing, ReportFigure, shown
from loraxs_search.reports.html.figures._optuna_study import optuna_study
from loraxs_search.reports.html.figures._style import ACCENT, GREY, log_axis, styled, thinner

if TYPE_CHECKING:
    import optuna
    from plotly.graph_objects import Figure

_LONGEST = 18  # characters of a label


class Slices(ReportFigure):
    name = "slices"
    title = "Score over each parameter"

    def draw(self, facts: StudyFacts) -> Drawing:
        if len(facts.complete) < 2:
            raise CannotDrawError("Slices need two trials that have trained all their steps.")
        study = optuna_study(facts)
        known = {name for trial in study.get_trials(deepcopy=False) for name in trial.params}
        names = [name for name in facts.varied if name in known]
        if not names:
            raise CannotDrawError("No parameter varies, so that there is nothing to see a slice of.")
        says = "A point for each complete trial that has the parameter; the later it was started, the bluer it is."
        return Drawing(says, {f"slice_{name}": _slice(study, name, facts.metric) for name in names})


def _slice(study: optuna.Study, name: str, metric: str) -> Figure:
    from optuna.visualization import plot_slice

    figure = plot_slice(study, params=[name], target_name=metric)
    scale = {
        "colorscale": [[0, GREY], [1, ACCENT]],
        "showscale": False,
        "size": thinner(7, len(study.trials)),
        "line": {"width": 0},
    }
    figure.update_traces(marker=scale, hovertemplate="%{x}: %{y:.4f}<extra>trial %{marker.color}</extra>")
    styled(figure, name, metric, height=260)
    if figure.layout.xaxis.type == "category":  # Optuna quotes labels
        for trace in figure.data:
            trace.x = [_unquoted(label) for label in trace.x]
        labels = [_unquoted(label) for label in figure.layout.xaxis.categoryarray]
        figure.update_xaxes(categoryarray=labels, tickvals=labels, ticktext=[_shortened(label) for label in labels])
    elif figure.layout.xaxis.type == "log":
        log_axis(figure.layout.xaxis, *(edge([x for trace in figure.data for x in trace.x]) for edge in (min, max)))
    return figure


def _unquoted(label: str) -> str:
    return label.strip("'\"")


def _shortened(label: str) -> str:
    """Return a label that stands beside others; its own text is escaped."""
    text = unescape(label)
    return shown(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")
