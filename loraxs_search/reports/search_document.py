"""A finished search as one JSON document."""

from __future__ import annotations

from dataclasses import dataclass

from loraxs_search.records import FrontTrial, Yardstick
from loraxs_search.reports.front import front
from loraxs_search.reports.leaderboard import LeaderboardRow, leaderboard
from loraxs_search.reports.score_warnings import score_warnings
from loraxs_search.reports.yardsticks import shown_yardsticks
from loraxs_search.studies import Journal, StudyFolder


@dataclass(frozen=True)
class SearchDocument:
    """What `launch --json` prints.

    Args:
        wall_s: How long drivers have worked on it, all of them together.
        notice: Why the search ended before its budget, for people; empty when it did not.
    """

    study: str
    wall_s: float
    notice: str
    trials: list[LeaderboardRow]
    front: list[FrontTrial]
    yardsticks: list[Yardstick]
    warnings: list[str]


def search_document(folder: StudyFolder, journal: Journal) -> SearchDocument:
    """Return a study's document as its folder has it now."""
    info, records = folder.info, journal.records.values()
    plan = info.search
    rows = leaderboard(records, info.task, folder.candidates() or (), plan.keep, plan.objectives)
    return SearchDocument(
        study=folder.name,
        wall_s=journal.spent_s,
        notice=journal.notice or "",
        trials=rows,
        front=list(front(records, folder.keep_rule)) if plan.objectives else [],
        yardsticks=shown_yardsticks(folder.yardsticks(), finished=True),
        warnings=score_warnings(rows, info.task),
    )
