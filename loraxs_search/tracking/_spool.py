"""The spool: events appended to a file by one owner, read back in order from a remembered offset."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from loraxs_search.errors import StudyError
from loraxs_search.home import disk_faults, ensure_dir, file_lock, write_atomic
from loraxs_search.log import AppendLog, lines_from
from loraxs_search.tracking.events import FINAL, Event, from_line, to_line

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """An event and the offset just behind it; `event` is None where the file holds a line that is no event."""

    event: Event | None
    end: int


_ID = "tracking.id"


class Spool:
    """Owns `tracking.jsonl` of one study folder, until closed.

    An event is safe once `append` returns: in the kernel's hands, so it survives kill -9 of this process; final events
    are also flushed to the device. The offset may lag behind what was applied, never run ahead of it.

    Raises:
        StudyError: another living process owns the spool.
        HomeError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._log = AppendLog(ensure_dir(folder) / "tracking.jsonl")
        self._lock = file_lock(folder / ".tracking.lock")  # hidden: it is of this machine alone, and not copied
        self._offset_path = folder / "tracking.offset"
        self._own()
        self._log.skip()
        self.offset = min(self._read_offset(), self.size)
        self.study_id = self._study_id(folder)

    @property
    def path(self) -> Path:
        return self._log.path

    @property
    def size(self) -> int:
        """Offset behind the last event."""
        return self._log.end

    def append(self, event: Event) -> None:
        """Add one event at the end, whole or not at all."""
        self._log.append(to_line(event), flush_to_device=isinstance(event, FINAL))

    def read(self, start: int, limit: int) -> list[Entry]:
        """Return up to `limit` entries from offset `start` on."""
        return list(islice(self._entries(start), limit))

    def history(self) -> Iterator[Event]:
        """Yield every event of the file, from its beginning."""
        return (entry.event for entry in self._entries(0) if entry.event is not None)

    def commit(self, offset: int) -> None:
        """Remember that everything before `offset` has been applied."""
        write_atomic(self._offset_path, str(offset))
        self.offset = offset

    def close(self) -> None:
        """Let the spool go: another owner may open it."""
        self._lock.release()

    def _own(self) -> None:
        from filelock import Timeout

        try:
            with disk_faults(self.path):
                self._lock.acquire(blocking=False)
        except Timeout as error:
            raise StudyError(
                f"`{self.path.parent}` must have one writer, but another process is recording this study.",
                hint="wait until it ends, or stop it, and try again",
            ) from error

    def _entries(self, start: int) -> Iterator[Entry]:
        for line, end in lines_from(self.path, start):
            try:
                yield Entry(from_line(line), end)
            except ValueError:
                _logger.warning("skipping a line of the spool that is no event, before byte %d", end)
                yield Entry(None, end)

    def _read_offset(self) -> int:
        try:
            return max(0, int(self._offset_path.read_text()))
        except (FileNotFoundError, ValueError):
            return 0  # everything is applied again, which changes nothing

    def _study_id(self, folder: Path) -> str:
        """Return the id that tells this study from one of the same name on another machine."""
        path = folder / _ID
        if not path.exists():
            write_atomic(path, f"{folder.name}-{secrets.token_hex(4)}")
        return path.read_text().strip()


def recorded_id(folder: Path) -> str:
    """Return the id that the runs of a study folder carry; empty where there are none yet."""
    path = folder / _ID
    return path.read_text().strip() if path.exists() else ""


def has_waiting(folder: Path) -> bool:
    """Return whether events of a study folder have yet to reach MLflow; needs no lock, and writes nothing."""
    try:
        offset = int((folder / "tracking.offset").read_text())
    except (FileNotFoundError, ValueError):
        offset = 0
    return next(lines_from(folder / "tracking.jsonl", offset), None) is not None
