"""Tables from recorded trials; reads, never runs."""

from __future__ import annotations

from loraxs_search.reports.front import front, hypervolume
from loraxs_search.reports.leaderboard import LeaderboardRow, leaderboard
from loraxs_search.reports.progress import Progress, progress
from loraxs_search.reports.yardsticks import shown_yardsticks

__all__ = ["LeaderboardRow", "Progress", "front", "hypervolume", "leaderboard", "progress", "shown_yardsticks"]
