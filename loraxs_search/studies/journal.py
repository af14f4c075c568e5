"""The trials of a study, and what else its driver goes by: a reader of its log, which the driver appends to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from loraxs_search.log.event_log import EventLog
from loraxs_search.log.events import (
    AdapterWritten,
    Answered,
    BaselinesMeasured,
    Commanded,
    DriverStarted,
    HostsMeasured,
    LoggedEvent,
    Reopened,
    ReportWritten,
    SearchFinished,
    TrainingEnded,
    TrialContinued,
    TrialEnded,
    TrialEvent,
    TrialReported,
    TrialStarted,
)
from loraxs_search.records import (
    Baseline,
    Command,
    CommandAnswer,
    CommandRecord,
    Hyperparameters,
    Origin,
    Proposal,
    Scalar,
    SearchRun,
    TrialRecord,
    TrialReport,
    TrialState,
)
from loraxs_search.studies.clock import WorkTime, steady_time

_EventT = TypeVar("_EventT", bound=LoggedEvent)


class Journal:
    """Appends events to a study's log, and replays it into `TrialRecord`s.

    One driver appends, from any of its threads, and anyone reads. Recording the same report or the same end twice
    changes nothing: the first one stands.

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
        is_reopened: Whether the search continues after it had ended: candidates from before are none any more.
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
        self._work_time = WorkTime()
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
        return self._work_time.until_now(steady_time()) if self._is_drivers else self.spent_s

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

    # ---- what a driver records -------------------------------------------------------------------------------------
    def driver_started(self, since: float, run: SearchRun | None = None) -> None:
        """Record that a driver has been at work on the study since then, seconds since 1970."""
        self.append(DriverStarted(at=steady_time(), study=self._study, since=since, run=run))
        self._is_drivers = True

    def search_ended(self, notice: str) -> None:
        """Record that there is no more to train, and why if the budget is not used up."""
        self.append(TrainingEnded(at=steady_time(), study=self._study, notice=notice))

    def reopened(self, number: int) -> None:
        """Record that the search continues after its trials had ended.

        Args:
            number: Of the commands so far that ask for this.
        """
        self.append(Reopened(at=steady_time(), study=self._study, number=number))

    def trial_started(
        self,
        trial_id: str,
        params: Mapping[str, Scalar],
        origin: Origin | None = None,
        proposal: Proposal | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> TrialStarted | None:
        """Record that a trial starts with `params`, and where it comes from, if it is not the sampler's.

        Args:
            proposal: How the sampler came to the params; None if it did not.
            hyperparameters: What the params resolve to; None if they resolve to none.
        Returns:
            The event; None when the trial was started before.
        """
        if trial_id in self.records:
            return None
        of = origin or Origin()
        return self.append(
            TrialStarted(
                at=steady_time(),
                study=self._study,
                trial_id=trial_id,
                params=dict(params),
                command=of.command,
                lineage=of.lineage,
                proposal=proposal,
                hyperparameters=hyperparameters,
            )
        )

    def trial_reported(self, report: TrialReport) -> TrialReported | None:
        """Record a report; return None when a report of that step or a later one is there already."""
        reports = self.records[report.trial_id].reports
        if reports and reports[-1].step >= report.step:
            return None
        return self.append(TrialReported(at=steady_time(), study=self._study, report=report))

    def trial_ended(self, trial_id: str, state: TrialState, reason: str, *, is_cut: bool = False) -> TrialEnded | None:
        """Record how a trial ended; return None when it had ended before.

        Args:
            is_cut: Whether the time budget ended it.
        """
        if self.records[trial_id].state is not TrialState.RUNNING:
            return None
        now = steady_time()
        worked_s = self._work_time.until_now(now) - self._work_before_s[trial_id]
        return self.append(
            TrialEnded(
                at=now,
                study=self._study,
                trial_id=trial_id,
                state=state,
                reason=reason,
                worked_s=worked_s,
                is_cut=is_cut,
            )
        )

    def trial_continued(self, trial_id: str) -> TrialContinued:
        """Record that a trial which the time budget had ended trains on."""
        return self.append(TrialContinued(at=steady_time(), study=self._study, trial_id=trial_id))

    def commanded(self, command: Command) -> bool:
        """Record that a command was taken, before anything is done about it; False when it was taken before."""
        if command.command_id in self.commands:
            return False
        self.append(Commanded(at=steady_time(), study=self._study, command=command))
        return True

    def answered(self, answer: CommandAnswer) -> bool:
        """Record what became of a command, which is its effect too; False when it was answered before."""
        if self.commands[answer.command_id].answer is not None:
            return False
        self.append(Answered(at=steady_time(), study=self._study, answer=answer))
        return True

    # ---- what only MLflow receives ---------------------------------------------------------------------------------
    def adapter_written(
        self, trial_id: str, folder: str, run_of: str = "", scores: Mapping[str, float] | None = None
    ) -> None:
        """Record that an adapter lies in `folder`, where it must stay until MLflow has it.

        Args:
            folder: Below that of the study.
            run_of: The trial whose run it belongs to; by default its own.
            scores: A candidate's, by split and metric.
        """
        at = steady_time()
        self.append(AdapterWritten(at=at, trial_id=trial_id, folder=folder, run_of=run_of, scores=dict(scores or {})))

    def baselines_measured(self, baselines: Sequence[Baseline]) -> None:
        """Record the study's baselines; the same ones count once."""
        if baselines and tuple(baselines) != self._baselines:
            self.append(BaselinesMeasured(at=steady_time(), baselines=tuple(baselines)))

    def report_written(self, path: str) -> None:
        """Record that the report of the search lies in a file below the study's folder."""
        self.append(ReportWritten(at=steady_time(), path=path))

    def hosts_measured(self, usage: Mapping[str, Mapping[str, float]], since: float) -> None:
        """Record how busy hosts are, by the addresses of their nodes; `since` is when the study was created."""
        now = steady_time()
        readings = {name: dict(each) for name, each in usage.items()}
        self.append(HostsMeasured(at=now, step=round(now - since), usage=readings))

    def search_finished(
        self,
        state: Literal["FINISHED", "FAILED", "KILLED"],
        summary: Mapping[str, Scalar] | None = None,
        *,
        at: float | None = None,
    ) -> None:
        """Record how the search has ended, now or at `at`."""
        at = steady_time() if at is None else at
        self.append(SearchFinished(at=at, state=state, summary=dict(summary or {})))

    def append(self, event: _EventT) -> _EventT:
        """Append an event, take it in, and return it.

        Raises:
            HomeError: no space left, or no right to write; nothing has changed.
        """
        with self._lock:
            self._log.append(event)
            self._apply(event)
        return event

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _apply(self, event: LoggedEvent) -> None:
        if isinstance(event, DriverStarted):
            self._work_time.driver_started(event.since, event.at)
        elif event.is_work:
            self._work_time.recorded(event.at)
        match event:
            case TrialStarted() | TrialReported() | TrialEnded() | TrialContinued():
                self._apply_to_trial(event)
            case Commanded(command=command):
                self.commands[command.command_id] = CommandRecord(command)
            case Answered(answer=answer):
                self.commands[answer.command_id] = replace(self.commands[answer.command_id], answer=answer)
            case TrainingEnded():
                self.notice, self.is_reopened = event.notice, False
            case Reopened():
                self.notice, self.is_reopened, self.num_reopenings = None, True, event.number
            case _:
                self._apply_record(event)

    def _apply_record(self, event: LoggedEvent) -> None:
        match event:
            case DriverStarted():
                self.num_drivers += 1
                self._search_state, self.has_report = None, False
            case BaselinesMeasured():
                self._baselines = event.baselines
            case ReportWritten():
                self.has_report = True
            case SearchFinished():
                self._search_state = event.state

    def _apply_to_trial(self, event: TrialEvent) -> None:
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
                record = self.records[event.trial_id]
                self.records[event.trial_id] = replace(
                    record,
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
