"""The command line: one file a verb. stdout is data, stderr is talk."""

from __future__ import annotations

from loraxs_search.cli._main import main

__all__ = ["main"]
