"""All params of all complete trials at once, the best of them in colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraxs_search.pareto import Fronts
from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.reports.html.figures._base import CannotDrawError, Drawing, ReportFigure
from loraxs_search.reports.html.figures._optuna_study import optuna_study
from loraxs_search.reports.html.figures._style import ACCENT, GREY, apart, styled, thinner

if TYPE_CHECKING:
    from plotly.graph_objects import Scatter

_BEST_SHARE = 10  # one tenth


class ParallelCoordinates(ReportFigure):
    name = "parallel_coordinates"
    title = "Parallel coordinates"
    wide = True

    def draw(self, facts: StudyFacts) -> Drawing:
        from optuna.visualization import plot_parallel_coordinate

        if len(facts.complete) < 2:
            raise CannotDrawError("Parallel coordinates need two trials that have trained all their steps.")
        if not any(name in record.params for record in facts.complete for name in facts.varied):
            raise CannotDrawError("No parameter varies, so that there is nothing to lay side by side.")
        both = bool(facts.info.search.objectives)
        study = optuna_study(facts, with_bytes=both)
        figure = plot_parallel_coordinate(study, target_name=facts.metric)  # of two objectives, the study names them
        lines = [trace for trace in figure.data if trace.mode == "lines"]
        best, others = _parted(lines, facts.sign, both)
        figure.data = ()
        for traces, color, opacity, label in ((others, GREY, 0.4, "others"), (best, ACCENT, 0.9, "best")):
            if traces:
                figure.add_trace(_joined(traces, color, opacity, label))
        styled(figure, height=420)
        figure.update_layout(margin={"t": 30, "l": 60}, legend={"y": 1.06})
        return Drawing(_says(len(best), len(lines), facts.metric, both), {self.name: figure})


def _says(best: int, count: int, metric: str, both: bool) -> str:
    which = "on the front of score and bytes" if both else f"best by {metric}"
    those = f"the one that is {which}" if best == 1 else f"the {best:,} that are {which}"
    return f"A line for each of {count:,} complete trials; in colour {those}."


def _parted(lines: list[Scatter], sign: float, both: bool) -> tuple[list[Scatter], list[Scatter]]:
    """Return the best lines and the others, by where they cross the axes of what was searched for."""
    if both:
        fronts = Fronts[int]()
        for number, line in enumerate(lines):
            fronts.add(number, (sign * line.y[0], line.y[1]))
        chosen = set(fronts.first())
    else:
        ordered = sorted(range(len(lines)), key=lambda number: -sign * lines[number].y[0])
        chosen = set(ordered[: max(1, len(lines) // _BEST_SHARE)])
    return [line for i, line in enumerate(lines) if i in chosen], [
        line for i, line in enumerate(lines) if i not in chosen
    ]


def _joined(lines: list[Scatter], color: str, opacity: float, label: str) -> Scatter:
    from plotly.graph_objects import Scatter

    look: dict[str, Any] = {
        "line": {"color": color, "width": thinner(1.4, len(lines))},
        "opacity": opacity,
        "name": label,
    }
    return Scatter(
        x=apart([line.x for line in lines]),
        y=apart([line.y for line in lines]),
        customdata=[values for line in lines for values in (*line.customdata, ("", ""))],
        mode="lines",
        hovertemplate="%{customdata[0]}: %{customdata[1]}<extra></extra>",
        **look,
    )
