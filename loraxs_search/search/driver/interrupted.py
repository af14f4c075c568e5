"""Errors of a search that ended with trials left to run: stopped from outside, or by failing trials."""

from __future__ import annotations

import threading

from loraxs_search.errors import LoraxsError


class OwnStop(threading.Event):
    """Stops one search: set by itself, or with the event that stops all that run together.

    Args:
        shared: Stops all; it is never set from here.
    """

    def __init__(self, shared: threading.Event) -> None:
        super().__init__()
        self._shared = shared

    def is_set(self) -> bool:
        return super().is_set() or self._shared.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, by which the shared event is noticed at the end: give a short time."""
        return super().wait(timeout) or self.is_set()


class SearchInterruptedError(LoraxsError):
    """The search was stopped from outside; nothing reported so far is lost."""

    exit_code = 130  # what shells give a program that SIGINT ended


class TrialsFailError(LoraxsError):
    """Nearly all of the latest trials failed for one reason; the others wait until it is fixed."""
