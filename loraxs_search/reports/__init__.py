"""Tables and figures from recorded trials; reads, never runs."""

from __future__ import annotations

from loraxs_search.reports.comparison import ComparedGroup, Comparison, compare
from loraxs_search.reports.following import StudyEvents, ended, watch
from loraxs_search.reports.front import front, hypervolume
from loraxs_search.reports.leaderboard import LeaderboardRow, interrupted, leaderboard
from loraxs_search.reports.progress import Progress, progress, state_and_place, study_state
from loraxs_search.reports.score_warnings import score_warnings
from loraxs_search.reports.search_document import SearchDocument, search_document
from loraxs_search.reports.search_state import HostLine, SearchState, TrialLine
from loraxs_search.reports.sparkline import sparkline
from loraxs_search.reports.yardsticks import shown_yardsticks

__all__ = [
    "ComparedGroup",
    "Comparison",
    "HostLine",
    "LeaderboardRow",
    "Progress",
    "SearchDocument",
    "SearchState",
    "StudyEvents",
    "TrialLine",
    "compare",
    "ended",
    "front",
    "hypervolume",
    "interrupted",
    "leaderboard",
    "progress",
    "score_warnings",
    "search_document",
    "shown_yardsticks",
    "sparkline",
    "state_and_place",
    "study_state",
    "watch",
]
