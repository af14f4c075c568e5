"""How a search looks in a terminal, from 60 columns on; what it says is decided in `reports/search_state.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loraxs_search.cli._plain import plain
from loraxs_search.cli._words import browse, clock, params_in_short, progress_in_words, time_left_in_words
from loraxs_search.errors import counted
from loraxs_search.records import TrialState
from loraxs_search.reports import SearchState, TrialLine, sparkline

_STYLES = {TrialState.COMPLETE: "green", TrialState.PRUNED: "dim", TrialState.FAIL: "red", TrialState.RUNNING: "bold"}
_MAX_ROWS, _MAX_HOSTS, _MAX_BAR, _CURVE = 15, 4, 50, 8
_WITH_BYTES = 100  # columns from which stored bytes have one


def draw(state: SearchState, console: Console, now: float, began: float, notice: str, server: str) -> RenderableType:
    """Return a search as it stands, for a terminal of this size.

    Args:
        began: When the view did.
        notice: What is to be seen to the end; empty where nothing is.
        server: Address of MLflow, for people; empty for the embedded store.
    """
    passed = _text(f"{clock(now - began)}  ", style="dim")
    if state.facts is None:
        return passed + _text(notice or (state.phase.text if state.phase else "waiting for the search"))
    above = [*_head(state, console, now, passed), *_lines(state, now, notice)]
    below = [
        *(_text(f"note: {note}", style="yellow", no_wrap=True, overflow="ellipsis") for note in state.facts.notes),
        _text(browse(state.study, server), style="dim", no_wrap=True, overflow="ellipsis"),
    ]
    rows = console.height - len(above) - len(below) - 3  # an empty line, the heading, the cursor's line
    return Group(*above, Text(""), _table(state, console, max(1, min(_MAX_ROWS, rows))), *below)


def _head(state: SearchState, console: Console, now: float, passed: Text) -> list[RenderableType]:
    assert state.facts is not None
    facts = state.facts
    title = _text(f"{state.study}: {facts.task} on {facts.device} ({facts.dtype})", no_wrap=True, overflow="ellipsis")
    title.stylize("bold")
    left = time_left_in_words(state.seconds_left(now))
    line = Table.grid(padding=(0, 2, 0, 0))
    bar = ProgressBar(total=1.0, completed=state.share_done(), width=max(10, min(_MAX_BAR, console.width - 30)))
    line.add_row(bar, _text(f"{100 * state.share_done():.0f} %"), _text(left), passed)
    return [title, line]


def _lines(state: SearchState, now: float, notice: str) -> list[RenderableType]:
    lines = [(label, _text(text)) for label, text in progress_in_words(state)]
    hosts = state.hosts(now) if state.is_training else []
    for host in hosts[:_MAX_HOSTS]:
        slots = f"{host.num_trials}/{'?' if host.num_slots is None else host.num_slots} slots"
        pace = "" if host.steps_per_s is None else f"  {host.steps_per_s:.2g} steps/s"
        pace += "" if host.rows_per_s is None else f"  {host.rows_per_s:.3g} rows/s"
        lines.append(("host", _text(f"{host.address}  {slots}{pace}")))
    if len(hosts) > _MAX_HOSTS:
        lines.append(("", _text(f"and {counted(len(hosts) - _MAX_HOSTS, 'more host')}")))
    if notice:
        lines.append(("notice", _text(notice, style="yellow")))
    return [_labelled(label, text) for label, text in lines]


def _labelled(label: str, text: Text) -> Text:
    line = _text(f"{label:<9}", style="dim", no_wrap=True, overflow="ellipsis")
    return line.append_text(text)


def _table(state: SearchState, console: Console, num_rows: int) -> Table:
    assert state.facts is not None
    with_bytes = console.width >= _WITH_BYTES
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True, header_style="dim")
    table.add_column("trial", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("step", no_wrap=True, justify="right")
    table.add_column(state.facts.metric, no_wrap=True, justify="right", max_width=10, overflow="ellipsis")
    table.add_column("curve", no_wrap=True, min_width=_CURVE)
    if with_bytes:
        table.add_column("bytes", no_wrap=True, justify="right")
    table.add_column("params", no_wrap=True, overflow="ellipsis", ratio=1)
    low, high = state.score_range()
    ascii_only = console.options.ascii_only
    paused = set(state.paused)
    for trial in state.lines(num_rows):
        curve = sparkline(trial.scores, low, high, width=_CURVE, ascii_only=ascii_only)
        is_paused = trial.trial in paused
        style = "dim" if is_paused else _STYLES[trial.state]
        cells = _cells(trial, state.facts.max_steps, curve, with_bytes)
        shown = cells[0], "paused" if is_paused else cells[1], *cells[2:]
        table.add_row(*map(_text, shown), style=style)
    return table


def _cells(trial: TrialLine, max_steps: int, curve: str, with_bytes: bool) -> Sequence[str]:
    score = "-" if trial.score is None else f"{trial.score:.4f}"
    stored = [f"{trial.stored_bytes:,}" if trial.stored_bytes else "-"] if with_bytes else []
    step = f"{max(trial.step, trial.current_step)}/{max_steps}"
    return trial.trial, trial.state.value, step, score, curve, *stored, params_in_short(trial.params)


def _text(text: str, **style: Any) -> Text:
    """Return a text that steers neither the terminal nor rich, whoever wrote it."""
    return Text(plain(text), **style)
