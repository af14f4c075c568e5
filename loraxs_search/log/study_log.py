"""A study's log: lines of a file that one process appends to, read as events, and what follows from these.

A line counts once it ends with a newline. What a killed writer or a full disk left at the end without one is passed
over by readers and cut off by the next write.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar, get_args

from loraxs_search.errors import HomeError, StudyError
from loraxs_search.home import disk_faults
from loraxs_search.log import clock, events
from loraxs_search.records.codec import from_json
from loraxs_search.records.search import Baseline, Command
from loraxs_search.records.trial import TrialRecord, TrialReport, TrialState

JOURNAL = "journal.jsonl"  # in a study's folder
DAMAGED_HINT = "restore the file from a backup, or launch the study again under another name"
STUDY_THREADS = "study"  # of studies that are searched together, each has a driver in a thread of this name
_EVENTS: dict[str, type[events.LoggedEvent]] = {kind.__name__: kind for kind in get_args(events.LoggedEvent)}
_EventT = TypeVar("_EventT", bound=events.LoggedEvent)
_logger = logging.getLogger(__name__)


# ---- lines -----------------------------------------------------------------------------------------------------------
def lines_from(path: Path, start: int) -> Iterator[tuple[bytes, int]]:
    """Yield the lines behind an offset, each with the offset behind it; none if there is no file.

    Raises:
        StudyError: the system does not let it be read.
    """
    end = start
    try:
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield line, end
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> StudyError:
    """Return the error of a study's file that the system does not let us read: it may be another user's."""
    return StudyError(
        f"{path} must be readable, but the system says: {error.strerror}.",
        hint="ask its owner for the right to read it",
    )


# ---- events ----------------------------------------------------------------------------------------------------------
def read_events(path: Path, study: str | None, offset: int = 0) -> Iterator[tuple[events.LoggedEvent | None, int]]:
    """Yield the events behind an offset, each with the offset behind it; None for one of an unknown kind.

    Args:
        study: Its name, which the events carry.
    Raises:
        StudyError: the log is damaged.
    """
    for line, end in lines_from(path, offset):
        event: events.LoggedEvent | None = None
        try:
            name = json.loads(line)["event"]
            if name in _EVENTS:
                event = replace(from_json(_EVENTS[name], line), study=study)
            else:  # such as later versions may add without another format
                _logger.warning("journal %s holds an unknown event %r; it is ignored", path, name)
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(path, offset) from error
        yield event, end
        offset = end


def _damaged(path: Path, at: int) -> StudyError:
    return StudyError(
        f"Every line of a journal must be an event, but {path} is damaged at byte {at}.", hint=DAMAGED_HINT
    )


# ---- what follows from events ----------------------------------------------------------------------------------------
def apply_to_trials(records: dict[str, TrialRecord], event: events.TrialEvent) -> None:
    """Take the next event of a trial into what is known of all trials.

    Raises:
        KeyError: the trial has not been started.
    """
    match event:
        case events.TrialStarted():
            records[event.trial_id] = TrialRecord(
                trial_id=event.trial_id,
                params=event.params,
                state=TrialState.RUNNING,
                started_at=event.at,
                command=event.command,
                lineage=event.lineage,
            )
        case events.TrialReported(report=report):
            record = records[report.trial_id]
            reports, times = (*record.reports, report), (*record.reported_at, event.at)
            records[report.trial_id] = replace(record, reports=reports, reported_at=times)
        case events.TrialEnded():
            records[event.trial_id] = replace(
                records[event.trial_id],
                state=event.state,
                reason=event.reason,
                ended_at=event.at,
                worked_s=event.worked_s,
                is_cut=event.is_cut,
            )
        case events.TrialContinued():
            records[event.trial_id] = replace(
                records[event.trial_id],
                state=TrialState.RUNNING,
                reason="",
                ended_at=None,
                worked_s=None,
                is_cut=False,
            )


# ---- the log of a study ----------------------------------------------------------------------------------------------
class SearchView(Protocol):
    """Shows a running search; every call returns at once. One that raises is called no more.

    Of a search that continues, what an earlier driver did is not repeated.
    """

    def happened(self, event: events.ShownEvent) -> None:
        """Take the next event; from any thread."""

    def known(self, event: events.ShownEvent) -> None:
        """Take an event of an earlier driver's trials; these come right after the first `SearchStarted`."""


class StudyLog:
    """A study's `journal.jsonl`, and what its events say.

    One process appends, which holds the study's lock, from one object and any of its threads: a line that a kill has
    torn is cut off by the next append. Anyone reads.

    A driver also shows the search through it. What happens to trials is in the file before anything acts on it, and a
    file that cannot be written stops the search. What is only shown stops nothing.

    Args:
        study: The study's name, which its events carry.
        view: Who watches the driver that appends; None is nobody.
    Attributes:
        follow: Called with each trial's event after it was written and shown.
        records: Every trial known so far, by id, in the order they were started.
        reports: Every report of every trial, in the order they came.
        commands: Every command that a driver has taken, by id, in the order in which they were taken, and so carried
            out; `answers` has those that it has decided on.
        last_at: When the last event was recorded, seconds since 1970.
        notice: Why the search ended before its budget; empty if it used it up, None while it has not ended.
        num_reopenings: How many commands that ask for more, after all trials had ended, the search has followed.
        is_reopened: Whether the search continues after it had ended: earlier candidates no longer count.
        has_report: Whether a report was written since the last driver started.
        is_finished: Whether all that MLflow receives at the end of a search is recorded.
    """

    def __init__(self, path: Path, study: str | None = None, view: SearchView | None = None) -> None:
        self._path, self._study, self._view = path, study, view
        self.follow: Callable[[events.TrialEvent], None] = lambda _: None
        self._has_shown_start, self._phase = False, ""
        self._end, self._lock = 0, threading.RLock()
        self.records: dict[str, TrialRecord] = {}
        self.reports: list[TrialReport] = []
        self.commands: dict[str, Command] = {}
        self.answers: dict[str, events.Answered] = {}
        self.notice: str | None = None
        self.num_reopenings, self.is_reopened = 0, False
        self.has_report = self.is_finished = False
        self._baselines: tuple[Baseline, ...] = ()
        self.last_at, self._earlier_s = 0.0, 0.0
        self._since: float | None = None  # the last driver's start
        self._work_before_s: dict[str, float] = {}  # each trial's start
        self._is_drivers = False
        self.refresh()

    @property
    def spent_s(self) -> float:
        """Seconds that drivers have worked on the study, each to the last event it recorded."""
        return self._spent_until(self.last_at)

    @property
    def spent_by_now_s(self) -> float:
        """The same, of a driver's own log until now: it may have recorded nothing for long."""
        return self._spent_until(clock.steady_time()) if self._is_drivers else self.spent_s

    def _spent_until(self, now: float) -> float:
        # Every driver goes by its own clock, and the time between two of them does not count.
        last_s = 0.0 if self._since is None else max(0.0, max(self.last_at, now) - self._since)
        return self._earlier_s + last_s

    def unfinished(self) -> list[TrialRecord]:
        """Return the trials that were started and have not ended."""
        return [record for record in self.records.values() if record.state is TrialState.RUNNING]

    def history(self) -> Iterator[events.LoggedEvent]:
        """Yield every event from the first one on."""
        return (event for event, _ in read_events(self._path, self._study) if event is not None)

    def refresh(self) -> None:
        """Read what was appended since the last look.

        Raises:
            StudyError: the log is damaged.
        """
        for event, end in read_events(self._path, self._study, self._end):
            try:
                if event is not None:
                    self._apply(event)
            except KeyError as error:  # of a trial or a command that no line before has begun
                raise _damaged(self._path, self._end) from error
            self._end = end

    def append(self, event: _EventT) -> _EventT | None:
        """Write an event, take it in, and return it; None if it changes nothing, and is not written.

        It survives a kill of this process. A trial starts once and ends once, and reports a step once; a command is
        taken once and answered once. A trial's end says how long drivers have worked since its start.

        Raises:
            HomeError: no space left, or no right to write; nothing has changed.
        """
        event = replace(event, study=self._study)
        with self._lock:
            match event:
                case events.TrialStarted():
                    is_known = event.trial_id in self.records
                case events.TrialReported(report=report):
                    record = self.records[report.trial_id]
                    is_known = bool(record.reports) and record.step >= report.step
                case events.TrialEnded():
                    is_known = self.records[event.trial_id].state is not TrialState.RUNNING
                    worked_s = self._spent_until(event.at) - self._work_before_s[event.trial_id]
                    event = replace(event, worked_s=event.worked_s or worked_s)
                case events.Commanded(command=command):
                    is_known = command.command_id in self.commands
                case events.Answered():
                    is_known = event.command_id in self.answers
                case events.BaselinesMeasured(baselines=baselines):
                    is_known = not baselines or baselines == self._baselines
                case _:
                    is_known = False
            if is_known:
                return None
            # What decides anything is on the device before it is acted on; a snapshot has the reports, too.
            is_decisive, line = not isinstance(event, events.TrialReported | events.WatchedEvent), event.to_line()
            with disk_faults(self._path):
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)  # not emptied
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    file.truncate(self._end)  # of whatever stands behind the last whole line
                    file.seek(self._end)
                    left = memoryview(line)
                    while left:  # a disk that fills up takes a part
                        left = left[file.write(left) :]
                    if is_decisive:
                        os.fsync(file.fileno())
            self._end += len(line)
            self._apply(event)
            self._is_drivers |= isinstance(event, events.DriverStarted)
        if isinstance(event, events.TrialEvent):
            if self._has_shown_start:
                self.show(event)
            self.follow(event)
        return event

    def _apply(self, event: events.LoggedEvent) -> None:
        if isinstance(event, events.DriverStarted):
            self._earlier_s, self._since, self.last_at = self.spent_s, event.since, event.at
        elif not isinstance(event, events.AsideEvent):
            self._since = event.at if self._since is None else self._since
            self.last_at = max(self.last_at, event.at)
        if isinstance(event, events.TrialContinued):
            worked_s = self.records[event.trial_id].worked_s or 0.0
            self._work_before_s[event.trial_id] = self.spent_s - worked_s
        if isinstance(event, events.TrialEvent):
            apply_to_trials(self.records, event)
        match event:
            case events.TrialStarted():
                self._work_before_s[event.trial_id] = self.spent_s
            case events.TrialReported(report=report):
                self.reports.append(report)
            case events.Commanded(command=command):
                self.commands[command.command_id] = command
            case events.Answered():
                if event.command_id not in self.commands:
                    raise KeyError(event.command_id)
                self.answers[event.command_id] = event
            case events.TrainingEnded():
                self.notice, self.is_reopened = event.notice, False
            case events.Reopened():
                self.notice, self.is_reopened, self.num_reopenings = None, True, event.number
            case events.DriverStarted():
                self.is_finished = self.has_report = False
            case events.BaselinesMeasured():
                self._baselines = event.baselines
            case events.ReportWritten():
                self.has_report = True
            case events.SearchFinished():
                self.is_finished = event.state == "FINISHED"

    # ---- what watchers are shown -------------------------------------------------------------------------------------
    def say(self, event: events.WatchedEvent) -> None:
        """Show an event that only watchers need; the file has it, too, while a driver is at work.

        When trials are about to train, the view also receives what they already have, once.
        """
        event = replace(event, study=self._study)
        if self._is_drivers:
            with contextlib.suppress(HomeError):
                self.append(event)
        self.show(event)
        if isinstance(event, events.SearchStarted) and not self._has_shown_start:
            self._has_shown_start = True
            for one in self.history():
                if isinstance(one, events.TrialEvent):
                    self.show(one, is_known=True)

    def phase(self, text: str = "", done: int | None = None, total: int | None = None, unit: str = "") -> None:
        """Say that other work begins, or without a text how far the present work has got."""
        self._phase = text or self._phase
        self.say(events.Phase(text=self._phase, done=done, total=total, unit=unit))

    def show(self, event: events.ShownEvent, *, is_known: bool = False) -> None:
        """Show an event that the file lacks or has already."""
        if self._view is None:
            return
        try:
            (self._view.known if is_known else self._view.happened)(event)
        except Exception as error:  # noqa: BLE001  # of a view that someone else wrote, or of a pipe without a reader
            self._view = None
            _logger.warning("the view of the search failed, and shows no more: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """Show what is said from now on, but do not write it: the file may soon be another driver's."""
        self._is_drivers = False

    @contextlib.contextmanager
    def saying_warnings(self) -> Iterator[None]:
        """Say what this package warns of, in any thread but those of other studies."""
        handler = _Warnings(self)
        logger = logging.getLogger("loraxs_search")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class _Warnings(logging.Handler):
    def __init__(self, log: StudyLog) -> None:
        super().__init__(logging.WARNING)
        self._log, self._thread = log, threading.current_thread().name

    def emit(self, record: logging.LogRecord) -> None:
        other = str(record.threadName)
        if other == self._thread or not other.startswith(STUDY_THREADS):
            try:
                self._log.say(events.Warned(text=record.getMessage()))
            except Exception:  # noqa: BLE001  # whoever warns continues, as with logging's own handlers
                self.handleError(record)
