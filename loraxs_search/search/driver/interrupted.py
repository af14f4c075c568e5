"""Errors of a search that ended with trials left to run: stopped from outside, or by failing trials."""

from __future__ import annotations

from loraxs_search.errors import LoraxsError


class SearchInterruptedError(LoraxsError):
    """The search was stopped from outside; nothing reported so far is lost."""

    exit_code = 130  # what shells give a program that SIGINT ended


class TrialsFailError(LoraxsError):
    """Nearly all of the latest trials failed for one reason; the others wait until it is fixed."""
