"""MLflow runs: one parent run per search, one child per trial, recorded off the search's control loop."""

from __future__ import annotations

from loraxs_search.tracking._removal import remove_runs
from loraxs_search.tracking._spool import has_waiting, recorded_id
from loraxs_search.tracking.events import StudyFacts
from loraxs_search.tracking.store import ensure_store, resolve_uri
from loraxs_search.tracking.tracker import Tracker
from loraxs_search.tracking.ui import run_ui, ui_command, ui_page

__all__ = [
    "StudyFacts",
    "Tracker",
    "ensure_store",
    "has_waiting",
    "recorded_id",
    "remove_runs",
    "resolve_uri",
    "run_ui",
    "ui_command",
    "ui_page",
]
