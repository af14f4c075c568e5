"""The one place where a driver says what happens: to the log first, then to the sampler and the view.

It shows a search to whoever watches, and warns of what scores show to be wrong with how the task is asked.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from loraxs_search.errors import HomeError, StudyError
from loraxs_search.log.events import (
    BaselineScored,
    Phase,
    SearchStarted,
    ShownEvent,
    TrialEvent,
    TrialReported,
    TrialsAdvanced,
    Warned,
    WatchedEvent,
)
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.promotion import Baseline
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialRecord, TrialReport, TrialState
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.snapshots import read_reports

if TYPE_CHECKING:
    from loraxs_search.samplers.trials import StudyTrials

_PACKAGE = "loraxs_search"
_STUDY_THREADS = "study"  # of studies that are searched together, each has a driver in a thread of this name
_logger = logging.getLogger(__name__)


class SearchView(Protocol):
    """Shows a running search; every call returns at once. One that raises is called no more.

    Of a search that continues, what an earlier driver did is not repeated.
    """

    def happened(self, event: ShownEvent) -> None:
        """Take the next event; from any thread."""

    def known(self, event: ShownEvent) -> None:
        """Take an event of an earlier driver's trials; these come right after the first `SearchStarted`."""


class SilentView:
    """A view that shows nothing; what a program calling `launch` gets by default."""

    def happened(self, event: ShownEvent) -> None: ...

    def known(self, event: ShownEvent) -> None: ...


class ScoreWatch:
    """Warns once of each thing.

    Args:
        max_steps: Of each trial. One that has trained less than half of them proves nothing.
    """

    def __init__(self, task: Task, max_steps: int) -> None:
        from loraxs_search.tasks.kinds import kind_of

        self._kind, self._max_steps = kind_of(task), max_steps
        self._said: set[str] = set()

    def reported(self, report: TrialReport) -> None:
        """Look at the scores of a trial's report."""
        if 2 * report.step >= self._max_steps:
            self.scored(report.trial_id, report.metrics)

    def scored(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        """Look at an adapter's scores."""
        for name, sentence in self._kind.score_warnings(metrics):
            if name not in self._said:
                self._said.add(name)
                _logger.warning("trial %s: %s", trial_id, sentence)


class Ledger:
    """Says each event once and in one order.

    What happens to trials is in the log before anything acts on it, and what keeps it out of there stops the search.
    The rest is only for watchers, and stops nothing: neither does a view that raises, as one whose reader went away.

    Args:
        study: The study's name.
        view: Where events are shown, before there is a log, too.
    """

    def __init__(self, study: str, view: SearchView) -> None:
        self._study, self._view = study, view
        self._journal: StudyLog | None = None
        self._earlier: list[TrialEvent] | None = []  # before trials are about to train; None from then on
        self._phase = ""
        self._baselines: set[str] = set()

    def open(
        self,
        journal: StudyLog,
        trials: StudyTrials,
        watch: ScoreWatch | None = None,
        after_report: Callable[[], None] = lambda: None,
    ) -> None:
        """Write what follows to the study's log.

        Args:
            trials: The sampler's, which is brought up to the log, and follows it.
            watch: Checks each report and may warn; None for no warnings.
            after_report: Called after each report.
        """
        self._journal, self._trials = journal, trials
        self._watch, self._after_report = watch, after_report
        for event in journal.history():
            trials.apply(event)
            if self._earlier is not None and isinstance(event, TrialEvent):
                self._earlier.append(event)

    def close(self) -> None:
        """Write no more to the log; what follows is shown only."""
        self._journal = None

    @property
    def journal(self) -> StudyLog:
        """The open log."""
        assert self._journal is not None
        return self._journal

    @property
    def records(self) -> dict[str, TrialRecord]:
        return self.journal.records

    def unfinished(self) -> list[TrialRecord]:
        """Return the trials that were started and have not ended."""
        return [r for r in self.records.values() if r.state is TrialState.RUNNING]

    def last_step(self, trial_id: str) -> int:
        """Return the step of a trial's last report; 0 if it has none."""
        reports = self.records[trial_id].reports
        return reports[-1].step if reports else 0

    def recover(self, folder: StudyFolder) -> None:
        """Take up the reports that a killed driver left in snapshots, which are written before the log.

        A trial whose snapshot is damaged begins again.
        """
        for record in self.unfinished():
            try:
                snapshot = folder.snapshots.read(record.trial_id)
                reports = read_reports(snapshot) if snapshot else ()
            except StudyError as error:
                folder.snapshots.set_aside(record.trial_id)
                _logger.warning("trial %s begins again: %s", record.trial_id, error.message)
                continue
            for report in reports:
                self._record(TrialReported(report=report))

    # ---- what happens ------------------------------------------------------------------------------------------------
    def trial(self, event: TrialEvent) -> None:
        """Something has happened to a trial; what the log has already changes nothing."""
        if self._record(event) and isinstance(event, TrialReported):
            if self._watch is not None:
                self._watch.reported(event.report)
            self._after_report()

    def say(self, event: WatchedEvent) -> None:
        """Something has happened that only watchers are shown.

        When trials are about to train, the view also receives what they already have, once.
        """
        event = replace(event, study=self._study)
        if self._journal is not None:
            with contextlib.suppress(HomeError):
                self._journal.append(event)
        self._show(event)
        if isinstance(event, SearchStarted):
            earlier, self._earlier = self._earlier or (), None
            for one in earlier:
                self._show(one, is_known=True)

    def phase(self, text: str) -> None:
        """Other work begins."""
        self._phase = text
        self.say(Phase(text=text))

    def counted(self, done: int, total: int, unit: str) -> None:
        """The present work has got so far."""
        self.say(Phase(text=self._phase, done=done, total=total, unit=unit))

    def advanced(self, folder: StudyFolder, steps: Mapping[str, int]) -> None:
        """Trials have got further since their last reports; from any thread."""
        event = TrialsAdvanced(study=self._study, steps=steps)
        with contextlib.suppress(HomeError):
            folder.write_steps(event)
        self._show(event)

    def baselines_scored(self, baselines: Iterable[Baseline]) -> None:
        """Baselines were scored; each is said once."""
        for baseline in baselines:
            name, metrics = baseline.name, baseline.validation_metrics
            if metrics and name not in self._baselines:
                self._baselines.add(name)
                self.say(BaselineScored(name=name, metrics=metrics))

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

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _record(self, event: TrialEvent) -> bool:
        """Write an event and pass it on; before the search has started, views are shown it as what was known before."""
        written = self.journal.append(replace(event, study=self._study))
        if written is None:
            return False
        self._trials.apply(written)
        if self._earlier is None:
            self._show(written)
        else:
            self._earlier.append(written)
        return True

    def _show(self, event: ShownEvent, *, is_known: bool = False) -> None:
        try:
            (self._view.known if is_known else self._view.happened)(event)
        except Exception as error:  # noqa: BLE001  # of a view that someone else wrote, or of a pipe without a reader
            self._view = SilentView()
            _logger.warning("the view of the search failed, and shows no more: %s: %s", type(error).__name__, error)


class _Warnings(logging.Handler):
    def __init__(self, ledger: Ledger) -> None:
        super().__init__(logging.WARNING)
        self._ledger, self._thread = ledger, threading.current_thread().name

    def emit(self, record: logging.LogRecord) -> None:
        other = str(record.threadName)
        if other == self._thread or not other.startswith(_STUDY_THREADS):
            try:
                self._ledger.say(Warned(text=record.getMessage()))
            except Exception:  # noqa: BLE001  # whoever warns continues, as with logging's own handlers
                self.handleError(record)
