"""The view of a running search."""

from __future__ import annotations

from typing import Protocol

from loraxs_search.log import ShownEvent


class SearchView(Protocol):
    """Shows a running search; every call returns at once. One that raises is called no more.

    Of a search that goes on, what an earlier driver did is not repeated.
    """

    def happened(self, event: ShownEvent) -> None:
        """Take the next event; from any thread."""

    def known(self, event: ShownEvent) -> None:
        """Take an event of an earlier driver's trials; these come right after the first `SearchStarted`."""


class SilentView:
    """A view that shows nothing; what a program calling `launch` gets by default."""

    def happened(self, event: ShownEvent) -> None: ...

    def known(self, event: ShownEvent) -> None: ...
