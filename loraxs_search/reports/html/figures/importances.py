"""Which params decide whether a trial is among the best."""

from __future__ import annotations

from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.reports.html.figures._base import CannotDrawError, Drawing, ReportFigure, shown
from loraxs_search.reports.html.figures._style import ACCENT, styled
from loraxs_search.reports.importances import importances


class ImportanceFigure(ReportFigure):
    """The numbers of `compare`, which has them of the sampler's memory."""

    name = "importances"
    title = "Importances"

    def draw(self, facts: StudyFacts) -> Drawing:
        from plotly.graph_objects import Bar, Figure

        importance = importances(facts.folder)
        if not importance.values:
            raise CannotDrawError(f"There are no importances: {importance.why or 'no parameter varies'}.")
        names = [shown(name) for name in importance.values]
        shares = list(importance.values.values())
        labels = [f"{share:.2f}" for share in shares]
        bars = Bar(x=shares, y=names, text=labels, textposition="outside", cliponaxis=False, orientation="h")
        figure = Figure(bars.update(marker={"color": ACCENT}, hovertemplate="%{y}: %{x:.3f}<extra></extra>"))
        styled(figure, "share", height=90 + 30 * len(names))
        figure.update_yaxes(autorange="reversed")
        figure.update_xaxes(range=[0, 1.1 * max(shares)])
        says = (
            f"{names[0]} decides most whether a trial is among the best {importance.quantile:.0%}"
            f" of {importance.num_trials} complete ones. This says what decided this search, not which value is better."
        )
        return Drawing(says, {self.name: figure})
