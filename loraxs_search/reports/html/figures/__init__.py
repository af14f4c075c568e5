"""The figures of the report, in the order in which it has them. Plotly and Optuna load when one is drawn."""

from __future__ import annotations

from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.reports.html.figures._base import CannotDrawError, Drawing, ReportFigure, Section
from loraxs_search.reports.html.figures.early_stopping import EarlyStopping
from loraxs_search.reports.html.figures.history import History
from loraxs_search.reports.html.figures.importances import ImportanceFigure
from loraxs_search.reports.html.figures.learning_curves import LearningCurves
from loraxs_search.reports.html.figures.parallel_coordinates import ParallelCoordinates
from loraxs_search.reports.html.figures.quality_and_bytes import QualityAndBytes
from loraxs_search.reports.html.figures.slices import Slices
from loraxs_search.reports.html.figures.timeline import Timeline
from loraxs_search.reports.html.figures.utilisation import Utilisation

__all__ = ["CannotDrawError", "Drawing", "ReportFigure", "Section", "sections"]

_FIGURES: tuple[ReportFigure, ...] = (
    *(LearningCurves(), QualityAndBytes(), History(), ImportanceFigure(), ParallelCoordinates(), Slices()),
    *(Timeline(), Utilisation(), EarlyStopping()),
)


def sections(facts: StudyFacts) -> list[Section]:
    """Draw every figure of a study; those that cannot be drawn say why."""
    return [figure.section(facts) for figure in _FIGURES]
