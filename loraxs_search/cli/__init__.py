"""The command line: a file for each verb, or for a family of small ones. stdout is data, stderr is talk."""

from __future__ import annotations

from loraxs_search.cli._main import main

__all__ = ["main"]
