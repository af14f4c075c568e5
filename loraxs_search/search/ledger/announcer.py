"""The view that a driver speaks to: it passes all on, and keeps what the journal lacks, for who watches."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from loraxs_search.errors import HomeError
from loraxs_search.records import (
    CandidateScoredEvent,
    DataReadEvent,
    HostInfo,
    PhaseEvent,
    SearchEvent,
    SteeredEvent,
    SteeringStatus,
    Task,
    TrialRecord,
    TrialsAdvancedEvent,
    WarningEvent,
    Yardstick,
    YardstickScoredEvent,
)
from loraxs_search.search.ledger.event_view import search_started
from loraxs_search.search.ledger.view import SearchStarted, SearchView, SilentView
from loraxs_search.studies import Journal, StudyFolder
from loraxs_search.studies.clock import steady_time

_PACKAGE = "loraxs_search"
_logger = logging.getLogger(__name__)
_STUDY_THREADS = "study"  # of studies that are searched together, each has a driver in a thread of this name


class Announcer:
    """A `SearchView` before another one; what counts is recorded elsewhere, so nothing that fails here stops a search.

    A view that raises, as one whose reader went away does, is left out from then on.
    """

    def __init__(self, study: str, view: SearchView) -> None:
        self._study, self._view = study, view
        self._journal: Journal | None = None
        self._phase = ""
        self._yardsticks: set[str] = set()

    def write_to(self, journal: Journal | None) -> None:
        """Keep what follows in the study's journal too; None means no more."""
        self._journal = journal

    def phase(self, text: str) -> None:
        """Other work begins."""
        self._phase = text
        self._keep(PhaseEvent(study=self._study, at=steady_time(), text=text))
        self._show(lambda view: view.phase(text))

    def trial_changed(self, record: TrialRecord) -> None:
        """A trial was started, reported or ended, and the journal has it."""
        self._show(lambda view: view.trial_changed(record))

    def commanded(self, text: str, status: SteeringStatus | None = None) -> None:
        """Somebody has sent a command, which was answered so; or the search waits for one."""
        self._keep(SteeredEvent(study=self._study, at=steady_time(), text=text, status=status))
        self._show(lambda view: view.commanded(text, status))

    def noted(self, event: SearchEvent) -> None:
        """Something else is known."""
        self._keep(event)
        self._show(lambda view: view.noted(event))

    def advanced(self, folder: StudyFolder, steps: Mapping[str, int]) -> None:
        """Trials have got further since their last reports; from any thread."""
        event = TrialsAdvancedEvent(study=self._study, at=steady_time(), steps=steps)
        with contextlib.suppress(HomeError):
            folder.write_steps(event)
        self._show(lambda view: view.noted(event))

    def finished(self) -> None:
        """No more calls follow."""
        self._show(lambda view: view.finished())

    def counted(self, done: int, total: int, unit: str) -> None:
        """The present work has got so far."""
        self.noted(PhaseEvent(study=self._study, at=steady_time(), text=self._phase, done=done, total=total, unit=unit))

    def started(self, facts: SearchStarted) -> None:
        """Trials are about to train."""
        self._keep(search_started(facts))
        self._show(lambda view: view.started(facts))

    def data_read(self, task: Task, info: HostInfo) -> None:
        """The rows of the task are read."""
        event = DataReadEvent(
            study=self._study, at=steady_time(), metric=task.metric, num_rows=info.num_rows, report=info.data
        )
        self.noted(event)

    def yardsticks_scored(self, yardsticks: Iterable[Yardstick]) -> None:
        """Yardsticks were scored; each is said once."""
        for yardstick in yardsticks:
            name, metrics = yardstick.name, yardstick.validation_metrics
            if metrics and name not in self._yardsticks:
                self._yardsticks.add(name)
                self.noted(YardstickScoredEvent(study=self._study, at=steady_time(), name=name, metrics=metrics))

    def candidate_scored(
        self, trial_id: str, split: Literal["validation", "test"], metrics: Mapping[str, float]
    ) -> None:
        """A candidate was scored on all rows of a split."""
        self.noted(
            CandidateScoredEvent(study=self._study, at=steady_time(), trial=trial_id, split=split, metrics=metrics)
        )

    @contextlib.contextmanager
    def hearing_warnings(self) -> Iterator[None]:
        """Take what this package warns of, from any thread but those of other studies, for news of the search."""
        handler = _Warnings(self)
        logger = logging.getLogger(_PACKAGE)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def warned(self, text: str) -> None:
        """People should know something."""
        self.noted(WarningEvent(study=self._study, at=steady_time(), text=text))

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _show(self, show: Callable[[SearchView], None]) -> None:
        try:
            show(self._view)
        except Exception as error:  # noqa: BLE001  # of a view that somebody else wrote, or of a pipe without a reader
            self._view = SilentView()
            _logger.warning("the view of the search failed, and shows no more: %s: %s", type(error).__name__, error)

    def _keep(self, event: SearchEvent) -> None:
        if self._journal is not None:
            with contextlib.suppress(HomeError):
                self._journal.note(event)


class _Warnings(logging.Handler):
    def __init__(self, announcer: Announcer) -> None:
        super().__init__(logging.WARNING)
        self._announcer, self._thread = announcer, threading.current_thread().name

    def emit(self, record: logging.LogRecord) -> None:
        other = str(record.threadName)
        if other == self._thread or not other.startswith(_STUDY_THREADS):
            try:
                self._announcer.warned(record.getMessage())
            except Exception:  # noqa: BLE001  # whoever warns goes on, as with logging's own handlers
                self.handleError(record)
