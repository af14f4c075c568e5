"""The contract of a figure of the report: a question about a study, drawn, or why it cannot be.

An entry is one file with one class, listed in `figures/__init__.py`. It reads `StudyFacts` and nothing else, writes
nothing, and may be asked again. Texts that users wrote go through `shown`, since plotly takes tags in its labels for
markup.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, ClassVar

from loraxs_search.records import Scalar
from loraxs_search.reports.html.facts import StudyFacts

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class CannotDrawError(Exception):
    """A study has nothing to draw for this figure; the message says why, in one sentence."""


@dataclass(frozen=True)
class Drawing:
    """What a figure shows.

    Args:
        says: What can be read from it, in one or two sentences.
        plots: One plot, or several small ones, by name. Names are unique over all figures of a report.
    """

    says: str
    plots: Mapping[str, Figure]


@dataclass(frozen=True)
class Section:
    """A figure as the report has it.

    Args:
        says: As in `Drawing`; where nothing could be drawn, why.
        wide: Whether it needs the width of a desktop screen: on a narrow screen it scrolls in its own box.
    """

    name: str
    title: str
    says: str
    plots: Mapping[str, Figure] = field(default_factory=dict)
    wide: bool = False


class ReportFigure(ABC):
    """A question that a figure answers.

    Args:
        name: Of the section and, where it has one plot, of that one.
        title: A heading, for people.
        wide: As `Section` has it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    wide: ClassVar[bool] = False

    @abstractmethod
    def draw(self, facts: StudyFacts) -> Drawing:
        """Draw a study.

        Raises:
            CannotDrawError: it has too little for this figure.
        """

    def section(self, facts: StudyFacts) -> Section:
        """Return the figure, or in its place the sentence that says why there is none."""
        try:
            drawing = self.draw(facts)
        except CannotDrawError as error:
            return Section(self.name, self.title, str(error))
        return Section(self.name, self.title, drawing.says, drawing.plots, self.wide)


def shown(value: Scalar) -> str:
    """Return a value as a label: plotly reads the text as markup, so that what users wrote is escaped."""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value), quote=False)
