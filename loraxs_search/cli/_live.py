"""A live view for terminals: a bar, the best so far, hosts, and a table of trials."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from rich.console import Console, ConsoleRenderable, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType

from loraxs_search.cli._data import data_lines
from loraxs_search.cli._drawing import draw
from loraxs_search.cli._plain import drawing_stream, plain
from loraxs_search.log import DataRead, ShownEvent
from loraxs_search.reports import SearchState

_A_SECOND = 2.0  # drawings: one takes some 10 ms of what the driver computes with


class LiveView:
    """Redraws a search twice a second, and wipes it at the end; a context manager.

    A thread draws, while the search's own thread says what happens.

    Args:
        server: Address of MLflow, for people; empty for the embedded store.
        began: When the clock that it shows begins, seconds since 1970; now by default.
    """

    def __init__(self, server: str, began: float | None = None) -> None:
        self._server, self._state, self._lock = server, SearchState(), threading.RLock()
        self._began, self._notice = time.time() if began is None else began, ""
        self._console = Console(file=drawing_stream(sys.stderr))
        self._live = _ResizedLive(
            console=self._console,
            get_renderable=self.__rich__,
            refresh_per_second=_A_SECOND,
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def happened(self, event: ShownEvent) -> None:
        """Take the next event."""
        with self._lock:
            self._state.happened(event)
        if isinstance(event, DataRead):  # not in the lock: a drawing waits for it while it holds the console
            lines = map(plain, data_lines(event.report, event.num_rows, event.metric, short=True))
            self._console.print(*lines, sep="\n", end="\n\n", markup=False, highlight=False, soft_wrap=True)

    known = happened

    def say(self, text: str) -> None:
        """Show a notice to the end, from a signal handler too: the next drawing has it."""
        self._notice = text

    def __rich__(self) -> RenderableType:
        with self._lock:
            return draw(self._state, self._console, time.time(), self._began, self._notice, self._server)


class _ResizedLive(Live):
    """Clears the screen when its size has changed.

    What was drawn before may take other lines then, and going up by as many as it took would leave some of them.
    """

    _size: object = None

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        processed = super().process_renderables(renderables)
        before, self._size = self._size, self.console.size
        if self.console.is_interactive and before not in (None, self._size):
            return [Control(ControlType.HOME, ControlType.CLEAR), *processed[1:]]
        return processed
