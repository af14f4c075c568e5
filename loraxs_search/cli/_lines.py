"""Plain lines for pipes and logs."""

from __future__ import annotations

import os
import time
from typing import TextIO

from loraxs_search.records import TrialRecord, TrialState
from loraxs_search.search.ledger.view import SearchStarted


class LinesView:
    """Writes one line an event, with the seconds since the start.

    Args:
        browse: Where the trials can be seen in MLflow, for people.
        label: What each line begins with, to tell studies apart.
    """

    def __init__(self, out: TextIO, browse: str, label: str = "") -> None:
        self._out, self._browse, self._start = out, browse, time.monotonic()
        self._label = f"{label}  " if label else ""
        self._facts: SearchStarted | None = None
        self._ended: set[str] = set()
        self.is_training = False

    @property
    def study(self) -> str | None:
        """The study, once it exists."""
        return self._facts.study if self._facts else None

    def phase(self, text: str) -> None:
        self.is_training = False
        self._write(text)

    def started(self, facts: SearchStarted) -> None:
        self._facts, self.is_training = facts, True
        self._ended = {record.trial_id for record in facts.trials if record.state is not TrialState.RUNNING}
        slots = f"{facts.num_slots} slot{'s' if facts.num_slots != 1 else ''}"
        why = f" ({facts.why_slots})" if facts.why_slots else ""
        self._write(f"study {facts.study}: {facts.num_trials} trials on {facts.device} ({facts.dtype}), {slots}{why}")
        for note in facts.notes:
            self._write(f"note: {note}")
        self._write(f"browse the trials: {self._browse}")

    def trial_changed(self, record: TrialRecord) -> None:
        if record.state is TrialState.RUNNING and not record.reports:
            return
        parts = [f"trial {record.trial_id}", *self._last_report(record)]
        if record.state is not TrialState.RUNNING:
            self._ended.add(record.trial_id)
            total = self._facts.num_trials if self._facts else 0
            parts[1:1] = [record.state.value]
            parts += [f"[{len(self._ended)}/{total}]", record.reason]
        self._write("  ".join(parts))

    def commanded(self, text: str) -> None:
        self._write(text)

    def finished(self) -> None:
        self._out.flush()

    def say(self, text: str) -> None:
        """Write a line from a signal handler: past the stream's buffer, which may be in use."""
        os.write(self._out.fileno(), self._line(text).encode())

    def _last_report(self, record: TrialRecord) -> list[str]:
        if not record.reports:
            return ["step 0"]
        last, metric = record.reports[-1], self._facts.task.search_metric if self._facts else ""
        return [f"step {last.step}", *([f"{metric} {last.metrics[metric]:.4f}"] if metric in last.metrics else [])]

    def _write(self, text: str) -> None:
        print(self._line(text), end="", file=self._out, flush=True)

    def _line(self, text: str) -> str:
        return f"{time.monotonic() - self._start:6.1f}s  {self._label}{text}\n"
