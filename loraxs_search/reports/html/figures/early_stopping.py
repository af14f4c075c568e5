"""At which steps trials ended, and what that saved."""

from __future__ import annotations

from loraxs_search.errors import counted
from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.reports.html.figures._base import CannotDrawError, Drawing, ReportFigure
from loraxs_search.reports.html.figures._style import ACCENT, GREY, styled
from loraxs_search.reports.html.spending import duration, spending, stopped_at


class EarlyStopping(ReportFigure):
    name = "early_stopping"
    title = "What early stopping saved"

    def draw(self, facts: StudyFacts) -> Drawing:
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
        return Drawing(_says(facts), {self.name: figure})


def _says(facts: StudyFacts) -> str:
    spent, most = spending(facts), facts.info.search.max_steps
    return (
        f"{len(facts.stopped):,} of {counted(len(facts.records), 'trial')} were stopped before step {most}. At their"
        f" own pace they would have needed {duration(spent.saved_s)} more of a device: saved {spent.saved_share:.0%}."
    )
