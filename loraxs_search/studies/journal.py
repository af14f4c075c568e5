"""The trials of a study, and what else its driver goes by: a reader of its log, which the driver appends to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from loraxs_search.log import clock
from loraxs_search.log.event_log import EventLog
from loraxs_search.log.events import (
    Answered,
    BaselinesMeasured,
    Commanded,
    DriverStarted,
    LoggedEvent,
    Reopened,
    ReportWritten,
    SearchFinished,
    TrainingEnded,
    TrialContinued,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from loraxs_search.records.command import CommandRecord
from loraxs_search.records.promotion import Baseline
from loraxs_search.records.trial import TrialRecord, TrialReport, TrialState

_EventT = TypeVar("_EventT", bound=LoggedEvent)


class Journal:
    """Appends events to a study's log, and replays it into `TrialRecord`s.

    One driver appends, from any of its threads, and anyone reads.

    Args:
        study: The study's name, which its events carry.
    Attributes:
        records: Every trial known so far, by id, in the order they were started.
        reports: Every report of every trial, in the order they came.
        commands: Every command that a driver has taken, by id, in the order in which they were taken, and so carried
            out.
        num_drivers: How many drivers have worked on the study, one after the other.
        notice: Why the search ended before its budget; empty if it used it up, None while it has not ended.
        num_reopenings: How many commands that ask for more, after all trials had ended, the search has followed.
        has_report: Whether a report was written since the last driver started.
        is_reopened: Whether the search continues after it had ended: earlier candidates no longer count.
    """

    def __init__(self, path: Path, study: str | None = None) -> None:
        self._log, self._lock = EventLog(path, study), threading.RLock()
        self._path, self._study = path, study
        self.records: dict[str, TrialRecord] = {}
        self.reports: list[TrialReport] = []
        self.commands: dict[str, CommandRecord] = {}
        self.num_drivers = 0
        self.notice: str | None = None
        self.num_reopenings, self.is_reopened = 0, False
        self._work_time = clock.WorkTime()
        self._work_before_s: dict[str, float] = {}  # each trial's start
        self._is_drivers = self.has_report = False
        self._baselines: tuple[Baseline, ...] = ()
        self._search_state: str | None = None
        self.refresh()

    @property
    def spent_s(self) -> float:
        """Seconds that drivers have worked on the study, each to the last event it recorded."""
        return self._work_time.seconds

    @property
    def spent_by_now_s(self) -> float:
        """The same, of a driver's own journal until now: it may have recorded nothing for long."""
        return self._work_time.until_now(clock.steady_time()) if self._is_drivers else self.spent_s

    @property
    def last_at(self) -> float:
        """When the last event was recorded, seconds since 1970."""
        return self._work_time.until

    @property
    def is_finished(self) -> bool:
        """Whether all that MLflow receives at the end of a search is recorded."""
        return self._search_state == "FINISHED"

    def refresh(self) -> None:
        """Read what was appended since the last look.

        Raises:
            StudyError: the log is damaged.
        """
        for event in self._log.new():
            try:
                self._apply(event)
            except KeyError as error:  # of a trial or a command that no line before has begun
                raise self._log.damaged() from error

    def history(self) -> Iterator[LoggedEvent]:
        """Yield every event from the first one on."""
        return EventLog(self._path, self._study).new()

    def append(self, event: _EventT) -> _EventT | None:
        """Write an event, take it in, and return it; None if it changes nothing, and is not written.

        A trial starts once and ends once, and reports a step once; a command is taken once and answered once. A trial's
        end says how long drivers have worked since its start.

        Raises:
            HomeError: no space left, or no right to write; nothing has changed.
        """
        with self._lock:
            match event:
                case TrialStarted():
                    is_known = event.trial_id in self.records
                case TrialReported(report=report):
                    is_known = any(each.step >= report.step for each in self.records[report.trial_id].reports[-1:])
                case TrialEnded():
                    is_known = self.records[event.trial_id].state is not TrialState.RUNNING
                    worked_s = self._work_time.until_now(event.at) - self._work_before_s[event.trial_id]
                    event = replace(event, worked_s=event.worked_s or worked_s)
                case Commanded(command=command):
                    is_known = command.command_id in self.commands
                case Answered(answer=answer):
                    is_known = self.commands[answer.command_id].answer is not None
                case BaselinesMeasured(baselines=baselines):
                    is_known = not baselines or baselines == self._baselines
                case _:
                    is_known = False
            if is_known:
                return None
            self._log.append(event)
            self._apply(event)
            self._is_drivers |= isinstance(event, DriverStarted)
        return event

    def _apply(self, event: LoggedEvent) -> None:
        if isinstance(event, DriverStarted):
            self._work_time.driver_started(event.since, event.at)
        elif event.is_work:
            self._work_time.recorded(event.at)
        match event:
            case TrialStarted():
                self._work_before_s[event.trial_id] = self._work_time.seconds
                self.records[event.trial_id] = TrialRecord(
                    trial_id=event.trial_id,
                    params=event.params,
                    state=TrialState.RUNNING,
                    started_at=event.at,
                    command=event.command,
                    lineage=event.lineage,
                )
            case TrialReported(report=report):
                self.reports.append(report)
                record = self.records[report.trial_id]
                reports, times = (*record.reports, report), (*record.reported_at, event.at)
                self.records[report.trial_id] = replace(record, reports=reports, reported_at=times)
            case TrialEnded():
                self.records[event.trial_id] = replace(
                    self.records[event.trial_id],
                    state=event.state,
                    reason=event.reason,
                    ended_at=event.at,
                    worked_s=event.worked_s,
                    is_cut=event.is_cut,
                )
            case TrialContinued():
                record = self.records[event.trial_id]
                self._work_before_s[event.trial_id] = self._work_time.seconds - (record.worked_s or 0.0)
                self.records[event.trial_id] = replace(
                    record, state=TrialState.RUNNING, reason="", ended_at=None, worked_s=None, is_cut=False
                )
            case Commanded(command=command):
                self.commands[command.command_id] = CommandRecord(command)
            case Answered(answer=answer):
                self.commands[answer.command_id] = replace(self.commands[answer.command_id], answer=answer)
            case TrainingEnded():
                self.notice, self.is_reopened = event.notice, False
            case Reopened():
                self.notice, self.is_reopened, self.num_reopenings = None, True, event.number
            case DriverStarted():
                self.num_drivers += 1
                self._search_state, self.has_report = None, False
            case BaselinesMeasured():
                self._baselines = event.baselines
            case ReportWritten():
                self.has_report = True
            case SearchFinished():
                self._search_state = event.state
