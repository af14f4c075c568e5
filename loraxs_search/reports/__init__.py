"""Tables and figures from recorded trials; reads, never runs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from loraxs_search.reports.front import front, hypervolume
from loraxs_search.reports.leaderboard import LeaderboardRow, leaderboard
from loraxs_search.reports.progress import Progress, progress, study_state
from loraxs_search.reports.score_warnings import score_warnings
from loraxs_search.reports.yardsticks import shown_yardsticks

if TYPE_CHECKING:
    from loraxs_search.reports.comparison import ComparedGroup, Comparison, compare

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

_OF_COMPARISON = ("ComparedGroup", "Comparison", "compare")


def __getattr__(name: str) -> Any:
    if name in _OF_COMPARISON:  # late: it loads the registry, which a table of trials does without
        return getattr(importlib.import_module(f"{__name__}.comparison"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
