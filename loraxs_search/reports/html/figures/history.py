"""Scores in the order in which trials were started: how long the search went on finding better ones."""

from __future__ import annotations

from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.reports.html.figures._base import CannotDrawError, Drawing, ReportFigure
from loraxs_search.reports.html.figures._optuna_study import optuna_study
from loraxs_search.reports.html.figures._style import ACCENT, GREY, styled


class History(ReportFigure):
    name = "history"
    title = "Best score over trials"

    def draw(self, facts: StudyFacts) -> Drawing:
        from optuna.visualization import plot_optimization_history

        if len(facts.complete) < 2:
            raise CannotDrawError("A history needs two trials that have trained all their steps.")
        figure = plot_optimization_history(optuna_study(facts), target_name=facts.metric)
        trials, best = figure.data[:2]
        trials.update(name="complete trials", marker={"color": GREY, "size": 6})
        best.update(name="best so far", line={"color": ACCENT, "width": 2.5, "shape": "hv"})
        first = int(facts.complete[0].trial_id)
        best.update(x=best.x[first:], y=best.y[first:])  # before it there is no best
        figure.data = (trials, best)
        figure.update_traces(hovertemplate="trial %{x}: %{y:.4f}<extra></extra>")
        styled(figure, "trial", f"{facts.metric} on validation rows")
        return Drawing(_says(facts), {self.name: figure})


def _says(facts: StudyFacts) -> str:
    best = facts.best
    assert best is not None  # there are complete trials
    since = sum(record.trial_id > best.trial_id for record in facts.records)
    later = (
        "it was the last one"
        if not since
        else f"{since} {'trial was' if since == 1 else 'trials were'} started after it"
    )
    return f"The best score, {best.score:.4f}, is of trial {best.trial_id}; {later}."
