"""Tables and figures from recorded trials; reads, never runs."""

from __future__ import annotations

from loraxs_search.reports.comparison import ComparedGroup, Comparison, compare
from loraxs_search.reports.front import front, hypervolume
from loraxs_search.reports.leaderboard import LeaderboardRow, leaderboard
from loraxs_search.reports.progress import Progress, progress, study_state
from loraxs_search.reports.score_warnings import score_warnings
from loraxs_search.reports.yardsticks import shown_yardsticks

__all__ = [
    "ComparedGroup",
    "Comparison",
    "LeaderboardRow",
    "Progress",
    "compare",
    "front",
    "hypervolume",
    "leaderboard",
    "progress",
    "score_warnings",
    "shown_yardsticks",
    "study_state",
]
