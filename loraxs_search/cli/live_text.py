"""The state of a search, and of its task's rows, in words and numbers: in terminals and pipes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from loraxs_search.cli._out import plain
from loraxs_search.errors import counted
from loraxs_search.log import events
from loraxs_search.log.events import Phase
from loraxs_search.records.literals import Split
from loraxs_search.records.task import DataReport
from loraxs_search.records.trial import TrialState
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


def clock(seconds: float) -> str:
    """Return a time that has passed, as 1:05 or 2:01:05."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def phase_in_words(phase: Phase) -> str:
    """Return what is being done, and how far it is where that is counted."""
    return phase.text if phase.total is None else f"{phase.text}: {phase.done:,} of {phase.total:,} {phase.unit}"


def browse(study: str, server: str) -> str:
    """Return how to see the trials of a study in MLflow.

    Args:
        server: Its address, as shown to users; empty for the embedded store.
    """
    return f"browse the trials: loraxs-search ui {study}" + (f" ({server})" if server else "")


def progress_in_words(state: SearchState) -> list[tuple[str, str]]:
    """Return labels and what is to be said of the search: where it is, its budget, its best trial."""
    counts, best, mark = state.counts, state.best, state.best_baseline
    now = f"finishing: {counts[TrialState.RUNNING]} still running" if state.finishing else "training"
    if state.ended is not None:
        now = state.ended.state
    elif state.phase is not None:
        now = phase_in_words(state.phase)
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
        both = {split: f"{own.median:,}/{own.longest:,}" for split, own in report.tokens.items()}
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
        error = {split: f"{own[name].error:.2g}" for split, own in report.standard_errors.items()}
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
_SILENT_S = 30.0  # without a line, until one says how far the search is


class LinesView:
    """Writes one line an event, with the seconds since the start; a context manager.

    While nothing happens, a thread writes every half minute how far the search is.

    Args:
        server: Address of MLflow, as shown to users; empty for the embedded store.
        label: What each line begins with, so that studies differ.
        began: When the seconds begin, since 1970.
        warns: Whether to write warnings too; where logging does, they would be there twice.
    """

    def __init__(
        self, out: TextIO, server: str, label: str = "", *, began: float | None = None, warns: bool = False
    ) -> None:
        self._out, self._server, self._warns = out, server, warns
        self._began = time.time() if began is None else began
        self._label = f"{label}  " if label else ""
        self.state, self._lock = SearchState(), threading.Lock()
        self._counted_at, self._is_estimated, self._written_at = 0.0, False, self._began
        self._closing = threading.Event()

    def __enter__(self) -> LinesView:
        def keep_talking() -> None:
            with contextlib.suppress(OSError):  # its reader went away
                while not self._closing.wait(1.0):
                    self.beat(time.time())

        threading.Thread(target=keep_talking, name="lines", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()

    def happened(self, event: events.ShownEvent) -> None:
        """Take the next event."""
        with self._lock:
            self.state.happened(event)
            for text in self._texts(event):
                self._write(text, event.at)

    def known(self, event: events.ShownEvent) -> None:
        """Take an event of an earlier driver: it counts, and has no line."""
        with self._lock:
            self.state.happened(event)

    def beat(self, now: float) -> None:
        """Write how far the search is, where nothing was written for half a minute."""
        with self._lock:
            if now - self._written_at < _SILENT_S:
                return
            state = self.state
            if state.facts is None or state.phase is not None:
                parts = [f"still {phase_in_words(state.phase)}" if state.phase else "still starting"]
            else:
                total = state.trial_steps + state.refit_steps
                parts = [f"{state.steps_done:,} of about {total:,.0f} steps"]
            left = time_left_in_words(state.seconds_left(now))
            self._write(", ".join([*parts, *([left] if left else [])]), now)

    def say(self, text: str) -> None:
        """Write a line from a signal handler: past the stream's buffer, which may be in use."""
        os.write(self._out.fileno(), self._line(text, time.time()).encode())

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _write(self, text: str, at: float) -> None:
        print(self._line(text, at), end="", file=self._out, flush=True)
        self._written_at = max(self._written_at, at)

    def _texts(self, event: events.ShownEvent) -> list[str]:
        texts: list[str] = []
        match event:
            case events.Phase():
                if event.total is None:
                    return [phase_in_words(event)]
                # Of what is counted, a line now and then, and the last one.
                if event.done and (event.done == event.total or event.at - self._counted_at >= _COUNT_EVERY_S):
                    self._counted_at = event.at
                    texts = [phase_in_words(event)]
            case events.DataRead():
                texts = data_lines(event.report, event.num_rows, event.metric, short=True)
            case events.SearchStarted():
                why = f" ({event.why_slots})" if event.why_slots else ""
                what = f"{counted(event.num_trials, 'trial')} on {event.device} ({event.dtype})"
                then = f"then {counted(event.num_refits, 'refit')} of {counted(event.max_steps, 'step')}"
                texts = [f"study {event.study}: {what}, {counted(event.num_slots, 'slot')}{why}"]
                texts += [then] if event.num_refits else []
                texts += [*(f"note: {note}" for note in event.notes), browse(event.study or "", self._server)]
            case events.TrialReported():
                texts = ["  ".join([f"trial {event.trial_id}", *self._last_report(event.trial_id)])]
                texts += self._estimate(event)
            case events.TrialEnded():
                left = time_left_in_words(self.state.seconds_left(event.at))
                ended = f"[{self.state.num_ended}/{self.state.num_trials}]"
                parts = [event.state.value, *self._last_report(event.trial_id), ended, event.reason]
                texts = ["  ".join([f"trial {event.trial_id}", *parts, *([left] if left else [])])]
            case events.BaselineScored():
                texts = ["  ".join([f"baseline {event.name}", *_scores(event.metrics)])]
            case events.CandidateScored():
                texts = ["  ".join([f"candidate {event.trial}", f"{event.split} rows", *_scores(event.metrics)])]
            case events.Steered():
                texts = [event.text]
            case events.Warned() if self._warns:
                texts = [f"warning: {event.text}"]
        return texts

    def _estimate(self, event: events.TrialReported) -> list[str]:
        """Say once how long the whole search takes, as soon as all trials that run side by side have a pace."""
        facts, trials = self.state.facts, self.state.trials.values()
        left = "" if self._is_estimated else time_left_in_words(self.state.seconds_left(event.at))
        if not left or facts is None or len(trials) < min(facts.num_slots, facts.num_trials):
            return []
        if any(trial.state is TrialState.RUNNING and not trial.reports for trial in trials):
            return []
        self._is_estimated = True
        refits = ", refits included" if self.state.refit_steps else ""
        return [f"{left}{refits}, at the pace of the first steps; less where trials are stopped early"]

    def _last_report(self, name: str) -> list[str]:
        facts, scores = self.state.facts, self.state.scores(name)
        score = [f"{facts.metric} {scores[-1]:.4f}"] if facts is not None and scores else []
        return [f"step {self.state.trials[name].step}", *score]

    def _line(self, text: str, at: float) -> str:
        return f"{max(0.0, at - self._began):6.1f}s  {self._label}{plain(text)}\n"


def _scores(metrics: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4f}" for name, value in metrics.items()][:3]
