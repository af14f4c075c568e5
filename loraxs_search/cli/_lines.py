"""Plain lines for pipes and logs."""

from __future__ import annotations

import time
from typing import TextIO

from loraxs_search.records import TrialRecord, TrialState
from loraxs_search.search.view import SearchStarted


class LinesView:
    """Writes one line an event, with the seconds since the start."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._start = out, time.monotonic()
        self._facts: SearchStarted | None = None
        self._ended = 0

    def phase(self, text: str) -> None:
        self._say(text)

    def started(self, facts: SearchStarted) -> None:
        self._facts = facts
        slots = f"{facts.num_slots} slot{'s' if facts.num_slots != 1 else ''}"
        self._say(f"study {facts.study}: {facts.num_trials} trials on {facts.device} ({facts.dtype}), {slots}")

    def trial_changed(self, record: TrialRecord) -> None:
        if record.state is TrialState.RUNNING and not record.reports:
            return
        metric = self._facts.task.metric if self._facts else ""
        last = record.reports[-1] if record.reports else None
        score = f"{metric} {last.metrics[metric]:.4f}" if last and metric in last.metrics else ""
        step = f"step {last.step}" if last else "step 0"
        if record.state is TrialState.RUNNING:
            self._say(f"trial {record.trial_id}  {step}  {score}")
            return
        self._ended += 1
        total = self._facts.num_trials if self._facts else 0
        self._say(
            f"trial {record.trial_id}  {record.state.value}  {step}  {score}  [{self._ended}/{total}] {record.reason}"
        )

    def finished(self) -> None:
        self._out.flush()

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._start:6.1f}s  {text}", file=self._out, flush=True)
