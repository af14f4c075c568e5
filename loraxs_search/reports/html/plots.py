"""The figures of a report by themselves, for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraxs_search.reports.html.facts import read_facts
from loraxs_search.reports.html.figures import sections
from loraxs_search.studies import StudyFolder

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def figures(study: str) -> dict[str, Figure]:
    """Return the figures of a study's report by name, as plotly has them; those that cannot be drawn are left out.

    Raises:
        StudyError: there is no such study, or it is damaged.
    """
    drawn = sections(read_facts(StudyFolder.open(study)))
    return {name: plot for section in drawn for name, plot in section.plots.items()}
