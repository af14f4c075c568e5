"""MLflow runs: one parent run per search, one child per trial, recorded from a study's log."""

from __future__ import annotations

from loraxs_search.tracking._environment import tags as environment_tags
from loraxs_search.tracking._followed import has_waiting, recorded_id
from loraxs_search.tracking._removal import remove_runs
from loraxs_search.tracking.store import ensure_store, resolve_uri
from loraxs_search.tracking.tracker import Tracker
from loraxs_search.tracking.ui import run_ui, ui_command, ui_page

__all__ = [
    "Tracker",
    "ensure_store",
    "environment_tags",
    "has_waiting",
    "recorded_id",
    "remove_runs",
    "resolve_uri",
    "run_ui",
    "ui_command",
    "ui_page",
]
