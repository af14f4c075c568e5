"""A study's log as MLflow follows it: from an offset that is the place of the first event which MLflow may lack."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from loraxs_search.home import ensure_dir, write_atomic
from loraxs_search.log import events as log_events
from loraxs_search.log.event_log import EventLog, from_line, lines_from

_ID = "tracking.id"
_LOG, _OFFSET = "journal.jsonl", "mlflow.offset"
_EARLIER, _EARLIER_OFFSET = "tracking.jsonl", "tracking.offset"
_FILES = {_EARLIER_OFFSET: _EARLIER, _OFFSET: _LOG}
# Kinds of events in `tracking.jsonl`, and what they are in the log.
_KINDS = {
    **{"search_started": "driver_started", "trial_started": "started", "trial_reported": "reported"},
    **{"trial_finished": "ended", "adapter_logged": "adapter_written"},
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Events to be applied, and what is remembered once they are: an offset, and the file that it is in."""

    events: list[log_events.LoggedEvent]
    file: str
    offset: int


class FollowedLog:
    """Reads a study's log for MLflow.

    The offset may lag behind what was applied, never run ahead of it. Versions that had no such offset wrote events for
    MLflow into their own file: what waits there comes first. Of the log, what that file has is passed over then.
    """

    def __init__(self, study: str, folder: Path) -> None:
        self._study, self._folder = study, ensure_dir(folder)
        self.path = folder / _LOG
        self.study_id = _study_id(folder)
        # What the earlier file has of trials: the log, which has it too, is read from its beginning then.
        self._told = {_of_trial(event) for _, event in self._earlier(0)} - {None}
        if (folder / _EARLIER).exists() and not (folder / _OFFSET).exists():
            write_atomic(folder / _OFFSET, "0")  # from now on the log may have what the earlier file has not
        self._offsets = {name: _read_offset(folder, name) for name in _FILES}

    @property
    def applied(self) -> int:
        """How many bytes have been applied; it only grows."""
        return sum(self._offsets.values())

    @property
    def end(self) -> int:
        """What `applied` comes to once all that there is now has been applied."""
        return sum(_end(self._folder / file, self._offsets[name]) for name, file in _FILES.items())

    def history(self) -> Iterator[log_events.LoggedEvent]:
        """Yield every event that there is, from the first one on."""
        yield from (event for _, event in self._earlier(0) if event is not None)
        yield from (event for event in EventLog(self.path, self._study).new() if _of_trial(event) not in self._told)

    def read(self, limit: int) -> Batch:
        """Return the next events, of at most so many lines.

        Raises:
            StudyError: the log is damaged.
        """
        offset = self._offsets[_EARLIER_OFFSET]
        if entries := list(islice(self._earlier(offset), limit)):
            return Batch([event for _, event in entries if event is not None], _EARLIER_OFFSET, entries[-1][0])
        log = EventLog(self.path, self._study, self._offsets[_OFFSET])
        events = [event for event in log.read(limit) if _of_trial(event) not in self._told]
        return Batch(events, _OFFSET, log.offset)

    def commit(self, batch: Batch) -> None:
        """Remember that a batch has been applied."""
        write_atomic(self._folder / batch.file, str(batch.offset))
        self._offsets[batch.file] = batch.offset

    def _earlier(self, start: int) -> Iterator[tuple[int, log_events.LoggedEvent | None]]:
        """Yield the events of the earlier file, each with the offset behind it; None if a line is no event."""
        for line, end in lines_from(self._folder / _EARLIER, start):
            try:
                yield end, _translated(line)
            except (ValueError, KeyError, TypeError):
                _logger.warning("skipping a line of %s that is no event, before byte %d", _EARLIER, end)
                yield end, None


def _of_trial(event: log_events.LoggedEvent | None) -> tuple[str, str, int] | None:
    """Return what tells an event of a trial from all others; None of other events."""
    match event:
        case log_events.TrialReported(report=report):
            return event.event, report.trial_id, report.step
        case log_events.TrialStarted() | log_events.TrialEnded():
            return event.event, event.trial_id, 0
    return None


def recorded_id(folder: Path) -> str:
    """Return the id that the runs of a study folder carry; empty where there are none yet."""
    path = folder / _ID
    return path.read_text().strip() if path.exists() else ""


def has_waiting(folder: Path) -> bool:
    """Return whether events of a study folder have yet to reach MLflow; it needs no lock, and writes nothing."""
    is_of_earlier_version = (folder / _EARLIER).exists() and not (folder / _OFFSET).exists()
    names = [_EARLIER_OFFSET] if is_of_earlier_version else list(_FILES)
    waiting = (next(lines_from(folder / _FILES[name], _read_offset(folder, name)), None) for name in names)
    return bool(recorded_id(folder)) and any(line is not None for line in waiting)


def _translated(line: bytes) -> log_events.LoggedEvent:
    """Return what a line of the earlier file is in the log."""
    fields = json.loads(line)
    kind = _KINDS.get(fields["event"], fields["event"])
    if kind == log_events.DriverStarted.event:
        fields = {"at": fields["at"], "since": fields["at"], "run": fields}
    if kind == log_events.AdapterWritten.event:  # paths from the root, of the machine that wrote them
        fields["folder"] = str(Path(*Path(fields["folder"]).parts[-2:]))
    if kind == log_events.ReportWritten.event:
        fields["path"] = Path(fields["path"]).name
    return from_line(json.dumps({**fields, "event": kind}).encode())


def _read_offset(folder: Path, name: str) -> int:
    """Return where to read on; 0 where the file has no line that begins there, as after a power cut."""
    try:
        offset = int((folder / name).read_text())
        with (folder / _FILES[name]).open("rb") as file:
            file.seek(max(0, offset - 1))
            return offset if offset > 0 and file.read(1) == b"\n" else 0
    except (FileNotFoundError, ValueError):
        return 0  # everything is applied again, which changes nothing


def _end(path: Path, start: int) -> int:
    """Return the offset behind the last whole line."""
    return max((end for _, end in lines_from(path, start)), default=start)


def _study_id(folder: Path) -> str:
    """Return the id that tells this study from one of the same name on another machine."""
    if not (known := recorded_id(folder)):
        known = f"{folder.name}-{secrets.token_hex(4)}"
        write_atomic(folder / _ID, known)
    return known
