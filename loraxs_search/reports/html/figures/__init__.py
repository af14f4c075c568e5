"""The figures of the report, in the order in which it has them. Plotly and Optuna load when one is drawn."""

from __future__ import annotations

from loraxs_search.reports.html.facts import ReportFacts
from loraxs_search.reports.html.figures._base import FigureSection, ReportFigure
from loraxs_search.reports.html.figures.params import ImportanceFigure, ScoreHistory, Slices
from loraxs_search.reports.html.figures.scores import LearningCurves, QualityAndBytes

_FIGURES: tuple[ReportFigure, ...] = (LearningCurves(), QualityAndBytes(), ScoreHistory(), ImportanceFigure(), Slices())


def sections(facts: ReportFacts) -> list[FigureSection]:
    """Draw every figure of a study; those that cannot be drawn say why."""
    return [figure.draw(facts) for figure in _FIGURES]
