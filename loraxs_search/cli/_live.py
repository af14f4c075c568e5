"""A search as it is drawn in a terminal from 60 columns on.

A bar, the best so far, and a table of trials; what they say is decided in `reports/search_state.py`.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from rich.console import Console, ConsoleRenderable, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

from loraxs_search.cli import live_text
from loraxs_search.cli._out import PlainText, plain
from loraxs_search.log.events import DataRead, ShownEvent
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.leaderboard import live_columns
from loraxs_search.reports.search_state import SearchState

_STYLES: dict[str, str] = {
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "dim",
    TrialState.FAIL: "red",
    TrialState.RUNNING: "bold",
}
_MAX_ROWS, _MAX_BAR = 15, 50
_WITH_BYTES = 100  # columns from which stored bytes have one


def draw(state: SearchState, console: Console, now: float, began: float, notice: str, uri: str) -> RenderableType:
    """Return a search as it stands, for a terminal of this size.

    Args:
        began: When the view did.
        notice: What is to be seen to the end; empty where nothing is.
        uri: Address of MLflow; empty without any.
    """
    passed = _text(f"{_clock(now - began)}  ", style="dim")
    if (facts := state.facts) is None:
        return passed + _text(notice or (state.phase.text if state.phase else "waiting for the search"))
    cut: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"}
    title = f"{state.study}: {facts.task} on {facts.device} ({facts.dtype})"
    progress = Table.grid(padding=(0, 2, 0, 0))
    bar = ProgressBar(total=1.0, completed=state.share_done(), width=max(10, min(_MAX_BAR, console.width - 30)))
    left = live_text.time_left_in_words(state.seconds_left(now))
    progress.add_row(bar, _text(f"{100 * state.share_done():.0f} %"), _text(left), passed)

    lines = [(label, _text(text)) for label, text in _progress(state)]
    if notice:
        lines.append(("notice", _text(notice, style="yellow")))
    above: list[RenderableType] = [_text(title, style="bold", **cut), progress]
    above += [_text(f"{label:<9}", style="dim", **cut).append_text(text) for label, text in lines]
    below = [_text(f"note: {note}", style="yellow", **cut) for note in facts.notes]
    below.append(_text(live_text.browse(state.study, uri), style="dim", **cut))

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True, header_style="dim")
    left_rows = console.height - len(above) - len(below) - 3  # an empty line, the heading, the cursor's line
    rows = state.rows(max(1, min(_MAX_ROWS, left_rows)))
    columns = dict[str, list[str]]()
    for heading, cells in live_columns(rows, facts.metric).items():
        if heading == "step":
            columns[heading] = [f"{row.step}/{facts.max_steps}" for row in rows]
        elif heading != "bytes" or console.width >= _WITH_BYTES:
            columns[heading] = cells
    columns["params"] = [
        " ".join(
            f"{_SHORT_NAMES.get(name, name)}={f'{value:.3g}' if isinstance(value, float) else value}"
            for name, value in row.params.items()
        )
        for row in rows
    ]
    looks: dict[str, dict[str, Any]] = {
        **{"trial": {"no_wrap": True}, "state": {"no_wrap": True}},
        **{facts.metric: {"justify": "right", "max_width": 10, **cut}, "params": {"ratio": 1, **cut}},
    }
    for heading in columns:
        table.add_column(heading, **looks.get(heading, {"no_wrap": True, "justify": "right"}))
    for row, *texts in zip(rows, *columns.values(), strict=True):
        table.add_row(*map(_text, texts), style=_STYLES[row.state])
    return Group(*above, Text(""), table, *below)


def _clock(seconds: float) -> str:
    """Return a time that has passed, as 1:05 or 2:01:05."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _progress(state: SearchState) -> list[tuple[str, str]]:
    """Return labels and what is to be said of the search: where it is, its budget, its best trial."""
    counts, best, mark = state.counts, state.best, state.best_baseline
    now = f"finishing: {counts[TrialState.RUNNING]} still running" if state.finishing else "training"
    if state.ended is not None:
        now = state.ended.state
    elif state.phase is not None:
        now = live_text.phase_in_words(state.phase)
    some = [(counts[TrialState.PRUNED], "stopped early"), (counts[TrialState.FAIL], "failed")]
    known = ", ".join(f"{number} {what}" for number, what in some if number)
    refits = f" ({state.refit_steps:,} in refits)" if state.refit_steps else ""
    lines = [
        ("now", now),
        ("trials", f"{state.num_ended} of {state.num_trials} ended{f' ({known})' if known else ''}"),
        ("steps", f"{state.steps_done:,} of about {state.trial_steps + state.refit_steps:,.0f}{refits}"),
    ]
    if best is not None and state.facts is not None:
        text = f"{best[0]}  {state.facts.metric} {best[1]:.4f}"
        if mark is not None:
            lead = state.sign * (best[1] - mark[1])
            text += f", {abs(lead):.4f} {'better' if lead > 0 else 'worse'} than {mark[0]} ({mark[1]:.4f})"
        lines.append(("best", text))
    if state.steered:
        lines.append(("asked", state.steered))
    return lines


_SHORT_NAMES = {"learning_rate": "lr", "head_learning_rate": "head_lr", "target_modules": "modules"}


def _text(text: str, **style: Any) -> Text:
    """Return a text that steers neither the terminal nor rich, whoever wrote it."""
    return Text(plain(text), **style)


_A_SECOND = 2.0  # drawings: one takes some 10 ms of what the driver computes with


class LiveView:
    """Redraws a search twice a second, and wipes it at the end; a context manager.

    A thread draws, while the search's own thread says what happens.

    Args:
        uri: Address of MLflow; empty without any.
        began: When the clock that it shows begins, seconds since 1970; now by default.
    """

    def __init__(self, uri: str, began: float | None = None) -> None:
        self._uri, self.state, self._lock = uri, SearchState(), threading.RLock()
        self._began, self._notice = time.time() if began is None else began, ""
        below = sys.stderr  # what draws has to steer the terminal
        while isinstance(below, PlainText):
            below = below.stream
        self._console = Console(file=below)
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

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def happened(self, event: ShownEvent) -> None:
        """Take the next event."""
        with self._lock:
            self.state.happened(event)
        if isinstance(event, DataRead):  # not in the lock: a drawing waits for it while it holds the console
            lines = map(plain, live_text.data_lines(event.report, event.num_rows, event.metric, short=True))
            self._console.print(*lines, sep="\n", end="\n\n", markup=False, highlight=False, soft_wrap=True)

    known = happened

    def say(self, text: str) -> None:
        """Show a notice to the end, from a signal handler too: the next drawing has it."""
        self._notice = text

    def __rich__(self) -> RenderableType:
        with self._lock:
            return draw(self.state, self._console, time.time(), self._began, self._notice, self._uri)


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
