"""What a search prints into a pipe: plain lines to read."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import TextIO

from loraxs_search.cli._output import plain
from loraxs_search.cli.live_text import browse, data_lines, phase_in_words, time_left_in_words
from loraxs_search.errors import counted
from loraxs_search.log import events
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.search_state import SearchState

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
        self._state, self._lock = SearchState(), threading.Lock()
        self._counted_at, self._is_estimated, self._written_at = 0.0, False, self._began
        self._closing = threading.Event()

    def __enter__(self) -> LinesView:
        threading.Thread(target=self._keep_talking, name="lines", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()

    def happened(self, event: events.ShownEvent) -> None:
        """Take the next event."""
        with self._lock:
            self._state.happened(event)
            for text in self._texts(event):
                self._write(text, event.at)

    def known(self, event: events.ShownEvent) -> None:
        """Take an event of an earlier driver: it counts, and has no line."""
        with self._lock:
            self._state.happened(event)

    def beat(self, now: float) -> None:
        """Write how far the search is, where nothing was written for half a minute."""
        with self._lock:
            if now - self._written_at < _SILENT_S:
                return
            state = self._state
            if state.facts is None or state.phase is not None:
                parts = [f"still {phase_in_words(state.phase)}" if state.phase else "still starting"]
            else:
                total = state.trial_steps() + state.refit_steps
                parts = [f"{state.steps_done:,} of about {total:,.0f} steps"]
            left = time_left_in_words(state.seconds_left(now))
            self._write(", ".join([*parts, *([left] if left else [])]), now)

    def say(self, text: str) -> None:
        """Write a line from a signal handler: past the stream's buffer, which may be in use."""
        os.write(self._out.fileno(), self._line(text, time.time()).encode())

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _keep_talking(self) -> None:
        with contextlib.suppress(OSError):  # its reader went away
            while not self._closing.wait(1.0):
                self.beat(time.time())

    def _write(self, text: str, at: float) -> None:
        print(self._line(text, at), end="", file=self._out, flush=True)
        self._written_at = max(self._written_at, at)

    def _texts(self, event: events.ShownEvent) -> list[str]:
        texts: list[str] = []
        match event:
            case events.Phase():
                texts = self._phase(event)
            case events.DataRead():
                texts = data_lines(event.report, event.num_rows, event.metric, short=True)
            case events.SearchStarted():
                texts = self._started(event)
            case events.TrialReported():
                texts = ["  ".join([f"trial {event.trial_id}", *self._last_report(event.trial_id)])]
                texts += self._estimate(event)
            case events.TrialEnded():
                texts = [self._ended(event)]
            case events.BaselineScored():
                texts = ["  ".join([f"baseline {event.name}", *_scores(event.metrics)])]
            case events.CandidateScored():
                texts = ["  ".join([f"candidate {event.trial}", f"{event.split} rows", *_scores(event.metrics)])]
            case events.Steered():
                texts = [event.text]
            case events.Warned() if self._warns:
                texts = [f"warning: {event.text}"]
        return texts

    def _phase(self, event: events.Phase) -> list[str]:
        """Of what is counted, write a line now and then, and the last one."""
        if event.total is not None:
            if not event.done or (event.done != event.total and event.at - self._counted_at < _COUNT_EVERY_S):
                return []
            self._counted_at = event.at
        return [phase_in_words(event)]

    def _started(self, event: events.SearchStarted) -> list[str]:
        why = f" ({event.why_slots})" if event.why_slots else ""
        what = f"{counted(event.num_trials, 'trial')} on {event.device} ({event.dtype})"
        then = f"then {counted(event.num_refits, 'refit')} of {counted(event.max_steps, 'step')}"
        notes = [*([then] if event.num_refits else []), *(f"note: {note}" for note in event.notes)]
        slots = counted(event.num_slots, "slot")
        return [f"study {event.study}: {what}, {slots}{why}", *notes, browse(event.study or "", self._server)]

    def _estimate(self, event: events.TrialReported) -> list[str]:
        """Say once how long the whole search takes, as soon as all trials that run side by side have a pace."""
        facts, trials = self._state.facts, self._state.trials.values()
        left = "" if self._is_estimated else time_left_in_words(self._state.seconds_left(event.at))
        if not left or facts is None or len(trials) < min(facts.num_slots, facts.num_trials):
            return []
        if any(trial.state is TrialState.RUNNING and not trial.reports for trial in trials):
            return []
        self._is_estimated = True
        refits = ", refits included" if self._state.refit_steps else ""
        return [f"{left}{refits}, at the pace of the first steps; less where trials are stopped early"]

    def _ended(self, event: events.TrialEnded) -> str:
        left = time_left_in_words(self._state.seconds_left(event.at))
        counted = f"[{self._state.num_ended}/{self._state.num_trials}]"
        name = event.trial_id
        parts = [f"trial {name}", event.state.value, *self._last_report(name), counted, event.reason]
        return "  ".join([*parts, *([left] if left else [])])

    def _last_report(self, name: str) -> list[str]:
        trial, facts = self._state.trials[name], self._state.facts
        score = [f"{facts.metric} {trial.score:.4f}"] if facts is not None and trial.score is not None else []
        return [f"step {trial.step}", *score]

    def _line(self, text: str, at: float) -> str:
        return f"{max(0.0, at - self._began):6.1f}s  {self._label}{plain(text)}\n"


def _scores(metrics: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4f}" for name, value in metrics.items()][:3]
