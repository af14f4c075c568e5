"""The search: Ray Tune schedules, Optuna samples, hosts train, one ledger records."""

from __future__ import annotations

from loraxs_search.search.driver import SearchResult
from loraxs_search.search.interrupted import SearchInterruptedError, TrialsFailError
from loraxs_search.search.launch import launch, launch_together, resume
from loraxs_search.search.view import SearchStarted, SearchView, SilentView

__all__ = [
    "SearchInterruptedError",
    "SearchResult",
    "SearchStarted",
    "SearchView",
    "SilentView",
    "TrialsFailError",
    "launch",
    "launch_together",
    "resume",
]
