"""The driver's journal: an append-only file of events, from which the state of every trial is rebuilt."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from loraxs_search.append_log import AppendLog, lines_from
from loraxs_search.errors import StudyError
from loraxs_search.records import Scalar, TrialRecord, TrialReport, TrialState, WarmStart, from_json, to_json
from loraxs_search.studies.reading import DAMAGED_HINT
from loraxs_search.studies.work_time import WorkTime

logger = logging.getLogger(__name__)
_REPORTED = b'{"event": "reported"'  # how such a line begins: most lines of a journal do


class Journal:
    """Append events and replay them into `TrialRecord`s.

    One driver writes, anyone reads. Recording the same report or the same end twice changes nothing: the first one
    stands.
    """

    def __init__(self, path: Path) -> None:
        self._log = AppendLog(path)
        self._records: dict[str, TrialRecord] = {}
        self._reports: list[TrialReport] = []
        self._work_time = WorkTime()
        self._notice: str | None = None
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
    def spent_s(self) -> float:
        """Seconds that drivers have worked on the study, each to the last event it recorded."""
        return self._work_time.seconds

    @property
    def last_at(self) -> float:
        """When the last event was recorded, seconds since 1970."""
        return self._work_time.until

    @property
    def notice(self) -> str | None:
        """Why the search ended before its budget, for people; empty when it used it up, None while it has not ended."""
        return self._notice

    def refresh(self) -> None:
        """Read what was appended since the last look."""
        for line in self._log.new_lines():
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:  # not JSON, or not an event
                raise StudyError(
                    f"Every line of a journal must be an event, but {self._log.path} is damaged "
                    f"at byte {self._log.end}.",
                    hint=DAMAGED_HINT,
                ) from error

    # ---- what a driver records -------------------------------------------------------------------------------------
    def driver_started(self, since: float) -> None:
        """Record that a driver has been at work on the study since then, seconds since 1970."""
        self._append({"event": "driver_started", "since": since}, sync=True)

    def search_ended(self, notice: str) -> None:
        """Record that there is no more to train, and why if the budget is not used up."""
        self._append({"event": "search_ended", "notice": notice}, sync=True)

    def trial_started(
        self, trial_id: str, params: Mapping[str, Scalar], warm_start: WarmStart | None = None
    ) -> TrialRecord:
        """Record that a trial was proposed with `params`, and of which earlier trial they are."""
        if trial_id not in self._records:
            event: dict[str, Any] = {"event": "started", "trial_id": trial_id, "params": dict(params)}
            if warm_start is not None:
                event["warm_start"] = asdict(warm_start)
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

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _last_step(self, trial_id: str) -> int:
        reports = self._records[trial_id].reports
        return reports[-1].step if reports else 0

    def _append(self, event: dict[str, Any], *, sync: bool) -> None:
        event["at"] = time.time()
        self._log.append(json.dumps(event).encode() + b"\n", flush_to_device=sync)
        self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        kind, at = event["event"], event["at"]
        if kind == "driver_started":
            self._work_time.driver_started(event["since"], at)
            return
        self._work_time.recorded(at)
        if kind == "started":
            origin = event.get("warm_start")
            self._records[event["trial_id"]] = TrialRecord(
                trial_id=event["trial_id"],
                params=event["params"],
                state=TrialState.RUNNING,
                started_at=at,
                warm_start=origin and WarmStart(origin["study"], origin["trial_id"]),
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
        elif kind == "search_ended":
            self._notice = event["notice"]
        else:
            logger.warning("journal %s holds an unknown event %r; it is ignored", self._log.path, kind)


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
