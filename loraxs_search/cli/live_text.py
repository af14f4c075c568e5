"""The state of a search, and of its task's rows, in words and numbers: in terminals and pipes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from loraxs_search.cli._out import plain
from loraxs_search.errors import counted
from loraxs_search.log import events
from loraxs_search.log.events import Phase
from loraxs_search.mlflow_uri import sqlite_path
from loraxs_search.records.codec import Split
from loraxs_search.records.task import DataReport
from loraxs_search.reports.leaderboard import row_of
from loraxs_search.reports.search_state import SearchState


def time_left_in_words(seconds: float | None) -> str:
    """Return an estimate as text; empty while there is none."""
    if seconds is None:
        return ""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 90:
        return f"about {round(seconds)} s left"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


def phase_in_words(phase: Phase) -> str:
    """Return what is being done, and how far it is where that is counted."""
    return phase.text if phase.total is None else f"{phase.text}: {phase.done:,} of {phase.total:,} {phase.unit}"


def browse(study: str, uri: str) -> str:
    """Return how to see the trials of a study in MLflow, which is at `uri`; only a server's address is shown."""
    return f"browse the trials: loraxs-search ui {study}" + (f" ({uri})" if uri and sqlite_path(uri) is None else "")


_WIDTHS: Mapping[Split, int] = {"train": 8, "validation": 10, "test": 8}  # columns of a terminal
_NAME = 18
_FEW, _MANY = 3, 20  # facts of answers that are shown, in short and at length


def data_lines(report: DataReport, scored: Mapping[Split, int], metric: str, *, short: bool = False) -> list[str]:
    """Return what is known of a task's rows.

    Args:
        scored: Rows of each split that are scored, for validation maybe a part.
        metric: The task's; the others are left out where it is short.
        short: Whether to leave out all that warnings say, and many labels.
    """
    lines: list[tuple[str, Mapping[Split, str]]] = [("data", {split: split for split in report.num_rows})]
    lines.append(("rows", {split: f"{rows:,}" for split, rows in report.num_rows.items()}))
    if scored.get("validation", 0) != report.num_rows.get("validation", 0):
        lines.append(("scored in reports", {"validation": f"{scored['validation']:,}"}))

    # Of many facts of answers the first ones and the last one.
    facts, limit = report.answers, _FEW if short else _MANY
    left_out = len(facts) - limit if len(facts) > limit + 1 else 0
    for number, fact in enumerate(facts):
        if not left_out or number < limit - 1 or number == len(facts) - 1:
            values = {
                split: f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
                for split, value in fact.values.items()
            }
            lines.append((fact.name.strip(), values))
        elif number == limit:
            lines.append((f"... {left_out} more", {}))

    if report.tokens:
        both = {split: f"{own['median']:,}/{own['longest']:,}" for split, own in report.tokens.items()}
        lines.append(("tokens, median/max", both))
    if any(report.cut.values()):
        lines.append(("cut to max_length", {split: f"{cut:,}" for split, cut in report.cut.items()}))
    if not short:
        lines.append(("without text", {split: f"{number:,}" for split, number in report.blank.items()}))
        lines.append(("repeated", {split: f"{number:,}" for split, number in report.repeated.items()}))
        for other in ("train", "validation"):
            shared = {it.split: f"{it.folded:,}" for it in report.overlaps if it.other == other}
            lines.append((f"also in {other}", shared))

    # Below the name of a metric, what the constant answer reaches and how sure a score is.
    errors = report.standard_errors.get("validation", {})
    names = [name for name in dict.fromkeys((metric, *errors)) if name in errors]
    for name in names[: 1 if short else None]:
        lines.append((name, {}))
        if report.constant is not None:
            scores = {split: f"{own[name]:.4f}" for split, own in report.constant.scores.items()}
            lines.append((f"  always {report.constant.answer}", scores))
        error = {split: f"{own[name]['error']:.2g}" for split, own in report.standard_errors.items()}
        lines.append(("  standard error", error))

    texts = []
    for name, cells in lines:  # a name in one line, of so many columns, indented as it is
        line = name[: len(name) - len(name.lstrip(" "))] + " ".join(name.split())
        line = line if cell_len(line) <= _NAME else f"{set_cell_size(line, _NAME - 3)}..."
        row = "".join(f"  {cells.get(split, ''):>{width}}" for split, width in _WIDTHS.items())
        texts.append(f"{set_cell_size(line, _NAME)}{row}".rstrip())
    return texts


# ---- where there is no terminal: plain lines to read -----------------------------------------------------------------
_COUNT_EVERY_S = 10.0


class LinesView:
    """Writes one line an event, with the seconds since the start.

    Args:
        uri: Address of MLflow; empty without any.
        label: What each line begins with, so that studies differ.
        began: When the seconds begin, since 1970.
        warns: Whether to write warnings too; where logging does, they would be there twice.
    """

    def __init__(
        self, out: TextIO, uri: str, label: str = "", *, began: float | None = None, warns: bool = False
    ) -> None:
        self._out, self._uri, self._warns = out, uri, warns
        self._began = time.time() if began is None else began
        self._label = f"{label}  " if label else ""
        self.state, self._counted_at = SearchState(), 0.0

    def happened(self, event: events.ShownEvent) -> None:
        """Take the next event."""
        self.state.happened(event)
        for text in self._texts(event):
            print(self._line(text, event.at), end="", file=self._out, flush=True)

    def known(self, event: events.ShownEvent) -> None:
        """Take an event of an earlier driver: it counts, and has no line."""
        self.state.happened(event)

    def say(self, text: str) -> None:
        """Write a line from a signal handler: past the stream's buffer, which may be in use."""
        os.write(self._out.fileno(), self._line(text, time.time()).encode())

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _line(self, text: str, at: float) -> str:
        return f"{max(0.0, at - self._began):6.1f}s  {self._label}{plain(text)}\n"

    def _texts(self, event: events.ShownEvent) -> list[str]:
        """Return the lines of an event; what is said of a trial or a baseline has two blanks between its parts."""
        state, lines, parts = self.state, list[str](), list[str]()
        scores: Mapping[str, float] = {}
        match event:
            case events.Phase(total=None):
                lines = [phase_in_words(event)]
            case events.Phase():  # of what is counted, a line now and then, and the last one
                if event.done and (event.done == event.total or event.at - self._counted_at >= _COUNT_EVERY_S):
                    self._counted_at = event.at
                    lines = [phase_in_words(event)]
            case events.DataRead():
                lines = data_lines(event.report, event.num_rows, event.metric, short=True)
            case events.SearchStarted():
                why = f" ({event.why_slots})" if event.why_slots else ""
                what = f"{counted(event.num_trials, 'trial')} on {event.device} ({event.dtype})"
                then = f"then {counted(event.num_refits, 'refit')} of {counted(event.max_steps, 'step')}"
                lines = [f"study {event.study}: {what}, {counted(event.num_slots, 'slot')}{why}"]
                lines += [then] if event.num_refits else []
                lines += [*(f"note: {note}" for note in event.notes), browse(event.study or "", self._uri)]
            case events.TrialReported() | events.TrialEnded():
                trial, metric = state.trials[event.trial_id], state.facts.metric if state.facts else ""
                value = row_of(trial, metric).score
                parts = [f"step {trial.step}", *([] if value is None else [f"{metric} {value:.4f}"])]
                if isinstance(event, events.TrialEnded):
                    left = time_left_in_words(state.seconds_left(event.at))
                    parts = [event.state.value, *parts, f"[{state.num_ended}/{state.num_trials}]", event.reason]
                    parts += [left] if left else []
                parts = [f"trial {event.trial_id}", *parts]
            case events.RowsScored():
                parts, scores = [f"{event.what} {event.name}", f"{event.split} rows"], event.metrics
            case events.Steered():
                lines = [event.text]
            case events.Warned():
                lines = [f"warning: {event.text}"] if self._warns else []
        parts += [f"{name} {value:.4f}" for name, value in scores.items()][:3]
        return lines + (["  ".join(parts)] if parts else [])
