"""A live table and a progress bar for terminals."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loraxs_search.records import Scalar, TrialRecord, TrialState
from loraxs_search.reports import LeaderboardRow, leaderboard
from loraxs_search.search.ledger.view import SearchStarted

_STYLES = {TrialState.COMPLETE: "green", TrialState.PRUNED: "dim", TrialState.FAIL: "red", TrialState.RUNNING: "bold"}
_MAX_ROWS = 15
_OTHER_LINES = 9  # title, frame, heading, bar, clock, hint


class LiveView:
    """Redraws a table of the best trials a few times a second, and wipes it at the end; a context manager.

    A thread draws; what it reads is replaced as a whole by the search's own thread.

    Args:
        browse: Where the trials can be seen in MLflow, for people.
    """

    def __init__(self, browse: str) -> None:
        self._browse, self._console = browse, Console(stderr=True)
        self._start = time.monotonic()
        self._phase = self._notice = ""
        self._facts: SearchStarted | None = None
        self._records: dict[str, TrialRecord] = {}
        self.is_training = False
        self._live = Live(
            console=self._console,
            get_renderable=self.__rich__,
            refresh_per_second=4,
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

    @property
    def study(self) -> str | None:
        """The study, once it exists."""
        return self._facts.study if self._facts else None

    def phase(self, text: str) -> None:
        self._phase, self.is_training = text, False

    def started(self, facts: SearchStarted) -> None:
        self._facts, self._phase, self.is_training = facts, "training", True
        self._records = {record.trial_id: record for record in facts.trials}

    def trial_changed(self, record: TrialRecord) -> None:
        self._records = self._records | {record.trial_id: record}

    def commanded(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def finished(self) -> None:
        self._phase = "done"

    def say(self, text: str) -> None:
        """Show a notice to the end, from a signal handler too: the next drawing has it."""
        self._notice = text

    def __rich__(self) -> RenderableType:
        clock = Text(f"{time.monotonic() - self._start:5.0f} s  {self._notice or self._phase}")
        if self._facts is None:
            return clock
        hint = Text(f"browse the trials: {self._browse}", style="dim")
        notes = [Text(f"note: {note}", style="yellow") for note in self._facts.notes]
        return Group(self._table(self._facts), self._bar(self._facts), clock, *notes, hint)

    def _table(self, facts: SearchStarted) -> Table:
        rows = leaderboard(list(self._records.values()), facts.task, keep=facts.keep)
        where = f"{facts.study} on {facts.device} ({facts.dtype})"
        table = Table(title=where, title_justify="left", title_style="bold", expand=True)
        for column in ("trial", "state", "step", facts.task.search_metric, "bytes"):
            table.add_column(column, no_wrap=True, justify="left" if column in ("trial", "state") else "right")
        table.add_column("params", no_wrap=True, overflow="ellipsis", ratio=1)
        for row in rows[: max(1, min(_MAX_ROWS, self._console.height - _OTHER_LINES))]:
            table.add_row(*_cells(row), style=_STYLES[row.state])
        return table

    def _bar(self, facts: SearchStarted) -> RenderableType:
        ended = sum(record.state is not TrialState.RUNNING for record in self._records.values())
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=facts.num_trials, completed=ended, width=min(60, self._console.width - 20))
        line.add_row(bar, f"{ended}/{facts.num_trials} trials")
        return line


def _cells(row: LeaderboardRow) -> tuple[str, ...]:
    score = "-" if row.score is None else f"{row.score:.4f}"
    params = " ".join(f"{name}={_short(value)}" for name, value in row.params.items())
    return row.trial_id, row.state.value, str(row.step), score, str(row.stored_bytes or "-"), params


def _short(value: Scalar) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
