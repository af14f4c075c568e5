"""A live table and a progress bar for terminals."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loraxs_search.records import TrialRecord, TrialState
from loraxs_search.reports import leaderboard
from loraxs_search.search.view import SearchStarted

_STYLES = {TrialState.COMPLETE: "green", TrialState.PRUNED: "dim", TrialState.FAIL: "red", TrialState.RUNNING: "bold"}
_MAX_ROWS = 15


class LiveView:
    """Redraws a table of the best trials a few times a second; a context manager."""

    def __init__(self) -> None:
        self._live = Live(console=Console(stderr=True), get_renderable=self._render, refresh_per_second=4)
        self._start = time.monotonic()
        self._phase = ""
        self._facts: SearchStarted | None = None
        self._records: dict[str, TrialRecord] = {}

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def phase(self, text: str) -> None:
        self._phase = text

    def started(self, facts: SearchStarted) -> None:
        self._facts, self._phase = facts, "training"

    def trial_changed(self, record: TrialRecord) -> None:
        self._records[record.trial_id] = record

    def finished(self) -> None:
        self._phase = "done"

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _render(self) -> RenderableType:
        clock = Text(f"{time.monotonic() - self._start:5.0f} s  {self._phase}")
        if self._facts is None:
            return clock
        return Group(self._table(self._facts), self._bar(self._facts), clock)

    def _table(self, facts: SearchStarted) -> Table:
        rows = leaderboard(list(self._records.values()), facts.task)
        table = Table(title=f"{facts.study} on {facts.device} ({facts.dtype})", title_justify="left")
        for column in ("trial", "state", "step", facts.task.metric, "bytes", "params"):
            table.add_column(column, overflow="ellipsis", no_wrap=True)
        for row in rows[:_MAX_ROWS]:
            score = "-" if row.score is None else f"{row.score:.4f}"
            params = " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.params.items())
            cells = (row.trial_id, row.state.value, str(row.step), score, str(row.stored_bytes or "-"), params)
            table.add_row(*cells, style=_STYLES[row.state])
        return table

    def _bar(self, facts: SearchStarted) -> RenderableType:
        ended = sum(record.state is not TrialState.RUNNING for record in self._records.values())
        return Group(
            ProgressBar(total=facts.num_trials, completed=ended, width=60), Text(f"{ended}/{facts.num_trials} trials")
        )
