"""A study's log as MLflow follows it: from an offset that is the place of the first event which MLflow may lack."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loraxs_search.home import ensure_dir, write_atomic
from loraxs_search.log.event_log import EventLog, lines_from
from loraxs_search.log.events import LoggedEvent

_ID = "tracking.id"
_LOG, _OFFSET = "journal.jsonl", "mlflow.offset"


@dataclass(frozen=True)
class Batch:
    """Events to be applied, and the offset that is remembered once they are."""

    events: list[LoggedEvent]
    offset: int


class FollowedLog:
    """Reads a study's log for MLflow. The offset may lag behind what was applied, never run ahead of it.

    Attributes:
        applied: How many bytes have been applied; it only grows.
    """

    def __init__(self, study: str, folder: Path) -> None:
        self._study, self._folder = study, ensure_dir(folder)
        self.path = folder / _LOG
        self.study_id = _study_id(folder)
        self.applied = _read_offset(folder)

    @property
    def end(self) -> int:
        """What `applied` becomes once all that there is now has been applied."""
        return max((end for _, end in lines_from(self.path, self.applied)), default=self.applied)

    def history(self) -> Iterator[LoggedEvent]:
        """Yield every event that there is, from the first one on."""
        return EventLog(self.path, self._study).new()

    def read(self, limit: int) -> Batch:
        """Return the next events, of at most so many lines.

        Raises:
            StudyError: the log is damaged.
        """
        log = EventLog(self.path, self._study, self.applied)
        return Batch(list(log.read(limit)), log.offset)

    def commit(self, batch: Batch) -> None:
        """Remember that a batch has been applied."""
        write_atomic(self._folder / _OFFSET, str(batch.offset))
        self.applied = batch.offset


def recorded_id(folder: Path) -> str:
    """Return the id that the runs of a study folder carry; empty where there are none yet."""
    path = folder / _ID
    return path.read_text().strip() if path.exists() else ""


def has_waiting(folder: Path) -> bool:
    """Return whether events of a study folder have yet to reach MLflow; it needs no lock, and writes nothing."""
    return bool(recorded_id(folder)) and any(True for _ in lines_from(folder / _LOG, _read_offset(folder)))


def _read_offset(folder: Path) -> int:
    """Return where to read on; 0 where the file has no line that begins there, as after a power cut."""
    try:
        offset = int((folder / _OFFSET).read_text())
        with (folder / _LOG).open("rb") as file:
            file.seek(max(0, offset - 1))
            return offset if offset > 0 and file.read(1) == b"\n" else 0
    except (FileNotFoundError, ValueError):
        return 0  # everything is applied again, which changes nothing


def _study_id(folder: Path) -> str:
    """Return the id that tells this study from one of the same name on another machine."""
    if not (known := recorded_id(folder)):
        known = f"{folder.name}-{secrets.token_hex(4)}"
        write_atomic(folder / _ID, known)
    return known
