"""The driver's journal: an append-only file of events, from which the state of every trial is rebuilt."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from loraxs_search.append_log import AppendLog, lines_from
from loraxs_search.records import (
    CandidateScoredEvent,
    Command,
    CommandAnswer,
    CommandRecord,
    DataReadEvent,
    Lineage,
    Origin,
    PhaseEvent,
    Scalar,
    SearchEvent,
    SearchStartedEvent,
    SteeredEvent,
    TrialRecord,
    TrialReport,
    TrialState,
    WarningEvent,
    YardstickScoredEvent,
    from_json,
    to_json,
)
from loraxs_search.studies.clock import steady_time
from loraxs_search.studies.reading import damaged_event
from loraxs_search.studies.work_time import WorkTime

logger = logging.getLogger(__name__)
_REPORTED = b'{"event": "reported"'  # how such a line begins: most lines of a journal do
# What no trial's state depends on: a driver notes it for who watches.
NOTES: Mapping[str, type[SearchEvent]] = {
    "data_read": DataReadEvent,
    "search_started": SearchStartedEvent,
    "phase": PhaseEvent,
    "warning": WarningEvent,
    "steered": SteeredEvent,
    "yardstick_scored": YardstickScoredEvent,
    "candidate_scored": CandidateScoredEvent,
}
# What may come while no driver trains: the time until then was nobody's work.
_COMMAND_CLEARED = "command_cleared"  # in journals of versions that read whole commands from tags of MLflow
_NO_WORK = frozenset({"commanded", "answered", _COMMAND_CLEARED, "reopened"})


class Journal:
    """Append events and replay them into `TrialRecord`s.

    One driver writes, from any of its threads, and anyone reads. Recording the same report or the same end twice
    changes nothing: the first one stands.
    """

    def __init__(self, path: Path) -> None:
        self._log, self._lock = AppendLog(path), threading.RLock()
        self._records: dict[str, TrialRecord] = {}
        self._reports: list[TrialReport] = []
        self._commands: dict[str, CommandRecord] = {}
        self._work_time = WorkTime()
        self._notice: str | None = None
        self._num_reopenings, self._is_reopened = 0, False
        self._is_drivers = False
        self.refresh()

    @property
    def records(self) -> dict[str, TrialRecord]:
        """Every trial known so far, by id, in the order they were started."""
        return self._records

    @property
    def reports(self) -> list[TrialReport]:
        """Every report of every trial, in the order they came."""
        return self._reports

    @property
    def commands(self) -> Mapping[str, CommandRecord]:
        """Every command that a driver has taken, by id, in the order in which they were taken, and so carried out."""
        return self._commands

    @property
    def spent_s(self) -> float:
        """Seconds that drivers have worked on the study, each to the last event it recorded."""
        return self._work_time.seconds

    @property
    def spent_by_now_s(self) -> float:
        """The same, of a driver's own journal until now: it may have recorded nothing while all trials were paused."""
        return self._work_time.until_now(steady_time()) if self._is_drivers else self.spent_s

    @property
    def last_at(self) -> float:
        """When the last event was recorded, seconds since 1970."""
        return self._work_time.until

    @property
    def notice(self) -> str | None:
        """Why the search ended before its budget, for people; empty when it used it up, None while it has not ended."""
        return self._notice

    @property
    def num_reopenings(self) -> int:
        """How many commands that ask for more, after all trials had ended, the search has followed."""
        return self._num_reopenings

    @property
    def is_reopened(self) -> bool:
        """Whether the search goes on after it had ended: candidates from before are none any more."""
        return self._is_reopened

    def refresh(self) -> None:
        """Read what was appended since the last look."""
        for line in self._log.new_lines():
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:  # not JSON, or not an event
                raise damaged_event(self._log) from error

    # ---- what a driver records -------------------------------------------------------------------------------------
    def driver_started(self, since: float) -> None:
        """Record that a driver has been at work on the study since then, seconds since 1970."""
        self._append({"event": "driver_started", "since": since}, sync=True)
        self._is_drivers = True

    def search_ended(self, notice: str) -> None:
        """Record that there is no more to train, and why if the budget is not used up."""
        self._append({"event": "search_ended", "notice": notice}, sync=True)

    def reopened(self, number: int) -> None:
        """Record that the search goes on after its trials had ended.

        Args:
            number: Of the commands so far that ask for this.
        """
        self._append({"event": "reopened", "number": number}, sync=True)

    def trial_started(self, trial_id: str, params: Mapping[str, Scalar], origin: Origin | None = None) -> TrialRecord:
        """Record that a trial starts with `params`, and where it comes from, if it is not the sampler's."""
        if trial_id not in self._records:
            event: dict[str, Any] = {"event": "started", "trial_id": trial_id, "params": dict(params)}
            event |= {name: value for name, value in asdict(origin or Origin()).items() if value}
            self._append(event, sync=True)
        return self._records[trial_id]

    def trial_reported(self, report: TrialReport) -> bool:
        """Record a report; False when a report of that step or a later one is there already."""
        if self._last_step(report.trial_id) >= report.step:
            return False
        self._append({"event": "reported", "report": json.loads(to_json(report))}, sync=False)
        return True

    def trial_ended(self, trial_id: str, state: TrialState, reason: str) -> bool:
        """Record how a trial ended; False when it had ended before."""
        if self._records[trial_id].state is not TrialState.RUNNING:
            return False
        self._append({"event": "ended", "trial_id": trial_id, "state": state.value, "reason": reason}, sync=True)
        return True

    def commanded(self, command: Command) -> bool:
        """Record that a command was taken, before anything is done about it; False when it was taken before."""
        if command.command_id in self._commands:
            return False
        self._append({"event": "commanded", "command": json.loads(to_json(command))}, sync=True)
        return True

    def answered(self, answer: CommandAnswer) -> bool:
        """Record what became of a command, which is its effect too; False when it was answered before."""
        if self._commands[answer.command_id].answer is not None:
            return False
        self._append({"event": "answered", "answer": json.loads(to_json(answer))}, sync=True)
        return True

    def note(self, event: SearchEvent) -> None:
        """Keep an event of `NOTES` for who watches; it is not flushed to the device."""
        fields = json.loads(to_json(event))
        rest = {name: value for name, value in fields.items() if name not in ("event", "study", "version")}
        self._append({"event": event.event, **rest}, sync=False)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _last_step(self, trial_id: str) -> int:
        reports = self._records[trial_id].reports
        return reports[-1].step if reports else 0

    def _append(self, event: dict[str, Any], *, sync: bool) -> None:
        event.setdefault("at", steady_time())
        with self._lock:
            self._log.append(json.dumps(event).encode() + b"\n", flush_to_device=sync)
            self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        kind, at = event["event"], event["at"]
        if kind == "driver_started":
            self._work_time.driver_started(event["since"], at)
            return
        if kind not in _NO_WORK:
            self._work_time.recorded(at)
        if kind == "started":
            lineage = event.get("lineage")
            self._records[event["trial_id"]] = TrialRecord(
                trial_id=event["trial_id"],
                params=event["params"],
                state=TrialState.RUNNING,
                started_at=at,
                command=event.get("command", ""),
                lineage=lineage and Lineage(lineage["study"], lineage["trial_id"], lineage["step"]),
                is_hidden=event.get("is_hidden", False),
            )
        elif kind == "reported":
            report = from_json(TrialReport, json.dumps(event["report"]))
            self._reports.append(report)
            record = self._records[report.trial_id]
            reports, times = (*record.reports, report), (*record.reported_at, at)
            self._records[report.trial_id] = replace(record, reports=reports, reported_at=times)
        elif kind == "ended":
            record = self._records[event["trial_id"]]
            self._records[event["trial_id"]] = replace(
                record, state=TrialState(event["state"]), reason=event["reason"], ended_at=at
            )
        elif kind in ("commanded", "answered"):
            self._apply_command(kind, event)
        elif kind == "search_ended":
            self._notice, self._is_reopened = event["notice"], False
        elif kind == "reopened":
            self._notice, self._is_reopened, self._num_reopenings = None, True, event["number"]
        elif kind not in NOTES and kind != _COMMAND_CLEARED:
            logger.warning("journal %s holds an unknown event %r; it is ignored", self._log.path, kind)

    def _apply_command(self, kind: str, event: dict[str, Any]) -> None:
        if kind == "commanded":
            command = from_json(Command, json.dumps(event["command"]))
            self._commands[command.command_id] = CommandRecord(command)
        else:
            answer = from_json(CommandAnswer, json.dumps(event["answer"]))
            self._commands[answer.command_id] = replace(self._commands[answer.command_id], answer=answer)


def trial_states(path: Path) -> dict[str, TrialState]:
    """Return every trial of a journal and how it stands, oldest first; its reports are not read, so it takes no time.

    Lines that are no events are passed over: who offers names has nobody to complain to.
    """
    states: dict[str, TrialState] = {}
    for line, _ in lines_from(path, 0):
        if line.startswith(_REPORTED):
            continue
        try:
            event = json.loads(line)
            if event["event"] == "started":
                states[event["trial_id"]] = TrialState.RUNNING
            elif event["event"] == "ended":
                states[event["trial_id"]] = TrialState(event["state"])
        except (ValueError, KeyError, TypeError):
            continue
    return states
