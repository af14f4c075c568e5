"""A search in a notebook: one output of a cell, drawn anew as things happen."""

from __future__ import annotations

import io
import threading
import time
from types import TracebackType
from typing import Any

from rich.console import Console

from loraxs_search.cli._data import data_lines
from loraxs_search.cli._drawing import draw
from loraxs_search.log import DataRead, ShownEvent
from loraxs_search.reports import SearchState

_EVERY_S = 0.5  # between two drawings
_WIDTH = 100
_PAGE = "<pre style='line-height:normal;font-family:monospace'>{code}</pre>"


def in_notebook() -> bool:
    """Whether what a cell displays is shown below it."""
    return Console().is_jupyter


class NotebookView:
    """Draws a search below its cell; what is drawn last stays there. A context manager.

    It needs IPython alone, which every notebook has, and no widgets.

    Args:
        server: Where the trials are recorded, for the hint.
    """

    def __init__(self, server: str) -> None:
        self._server, self._state, self._lock = server, SearchState(), threading.Lock()
        self._began, self._notice = time.time(), ""
        self._drawn_at = 0.0
        self._rows: list[str] = []  # what the task's rows are like, above what is drawn
        self._output: Any = None

    def __enter__(self) -> NotebookView:
        from IPython.display import display

        self._output = display(_html(self._page()), display_id=True)  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()

    def happened(self, event: ShownEvent) -> None:
        """Take the next event, from whatever thread."""
        with self._lock:
            self._state.happened(event)
            if isinstance(event, DataRead):
                self._rows = data_lines(event.report, event.num_rows, event.metric, short=True)
            if event.at - self._drawn_at < _EVERY_S:
                return
            self._drawn_at = event.at
        self._draw()

    def known(self, event: ShownEvent) -> None:
        """Take an event of an earlier driver."""
        with self._lock:
            self._state.happened(event)

    def say(self, text: str) -> None:
        """Show a notice to the end."""
        self._notice = text

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _draw(self) -> None:
        self._output.update(_html(self._page()))

    def _page(self) -> str:
        console = Console(file=io.StringIO(), record=True, width=_WIDTH, force_jupyter=False)
        with self._lock:
            drawn = draw(self._state, console, time.time(), self._began, self._notice, self._server)
            rows = [*self._rows, ""] if self._rows else []
        console.print(*rows, sep="\n", end="", markup=False, highlight=False, soft_wrap=True)
        console.print(drawn)
        return console.export_html(inline_styles=True, code_format=_PAGE)


def _html(page: str) -> Any:
    from IPython.display import HTML

    return HTML(page)  # type: ignore[no-untyped-call]
