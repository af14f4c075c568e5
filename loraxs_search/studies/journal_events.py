"""The lines of a journal as events, for who watches a study from outside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from loraxs_search.append_log import AppendLog
from loraxs_search.records import (
    SearchEvent,
    TrialEndedEvent,
    TrialRecord,
    TrialReport,
    TrialReportedEvent,
    TrialStartedEvent,
    TrialState,
    from_json,
)
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.journal import NOTES
from loraxs_search.studies.reading import damaged_event


class JournalEvents:
    """Reads a study's journal on from where it was read last; nothing is written."""

    def __init__(self, folder: StudyFolder) -> None:
        self._study, self._log = folder.name, AppendLog(folder.journal_path)

    def new(self) -> Iterator[SearchEvent]:
        """Yield the events that were recorded since the last call.

        Raises:
            StudyError: the journal is damaged.
        """
        for line in self._log.new_lines():
            try:
                event = self._event(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise damaged_event(self._log) from error
            if event is not None:
                yield event

    def _event(self, line: Mapping[str, Any]) -> SearchEvent | None:
        """Return a line's event; None for what is the driver's own business."""
        kind = line["event"]
        if kind in NOTES:
            return from_json(NOTES[kind], json.dumps({**line, "study": self._study}))
        at = line["at"]
        if kind == "started":
            return TrialStartedEvent(
                study=self._study,
                at=at,
                trial=line["trial_id"],
                params=line["params"],
            )
        if kind == "reported":
            return _reported(self._study, from_json(TrialReport, json.dumps(line["report"])), at)
        if kind == "ended":
            state = TrialState(line["state"])
            return TrialEndedEvent(study=self._study, at=at, trial=line["trial_id"], state=state, reason=line["reason"])
        return None


def started_event(study: str, record: TrialRecord) -> TrialStartedEvent:
    """Return the event that a trial was proposed."""
    return TrialStartedEvent(
        study=study,
        at=record.started_at,
        trial=record.trial_id,
        params=record.params,
    )


def reported_event(study: str, record: TrialRecord, number: int) -> TrialReportedEvent:
    """Return the event of a trial's report, the first one being number 0."""
    return _reported(study, record.reports[number], record.reported_at[number])


def ended_event(study: str, record: TrialRecord) -> TrialEndedEvent:
    """Return the event of a trial's end."""
    at = record.started_at if record.ended_at is None else record.ended_at
    return TrialEndedEvent(study=study, at=at, trial=record.trial_id, state=record.state, reason=record.reason)


def _reported(study: str, report: TrialReport, at: float) -> TrialReportedEvent:
    return TrialReportedEvent(
        study=study,
        at=at,
        trial=report.trial_id,
        step=report.step,
        metrics=report.metrics,
        train_loss=report.train_loss,
        device_s=report.device_s,
        num_tokens=report.num_tokens,
        stored_bytes=report.size.stored_bytes,
        host=report.host,
    )
