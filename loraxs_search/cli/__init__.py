"""The command line: one file a verb. stdout is data, stderr is talk."""

from __future__ import annotations

from loraxs_search.cli._main import main, run

__all__ = ["main", "run"]
