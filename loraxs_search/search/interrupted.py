"""A search that was stopped from outside."""

from __future__ import annotations

from loraxs_search.errors import LoraxsError


class SearchInterruptedError(LoraxsError):
    """The search was stopped from outside; nothing reported so far is lost."""

    exit_code = 130  # what shells give a program that SIGINT ended
