"""Tables and figures from recorded trials; reads, never runs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from loraxs_search.reports.leaderboard import (
    LeaderboardRow,
    front,
    interrupted,
    leaderboard,
    score_warnings,
    shown_baselines,
)
from loraxs_search.reports.progress import (
    Progress,
    SearchDocument,
    StudyEvents,
    ended,
    progress,
    search_document,
    state_and_place,
    study_state,
    watch,
)
from loraxs_search.reports.search_state import HostLine, SearchState, TrialLine
from loraxs_search.reports.text_plot import sparkline

if TYPE_CHECKING:
    from loraxs_search.reports.comparison import ComparedGroup, Comparison, compare

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
    "interrupted",
    "leaderboard",
    "progress",
    "score_warnings",
    "search_document",
    "shown_baselines",
    "sparkline",
    "state_and_place",
    "study_state",
    "watch",
]

_OF_COMPARISON = ("ComparedGroup", "Comparison", "compare")


def __getattr__(name: str) -> Any:
    if name in _OF_COMPARISON:  # late: it loads the registry, which a table of trials does without
        return getattr(importlib.import_module(f"{__name__}.comparison"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
