"""The spool: events appended to a file by one owner, read back in order from a remembered offset."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from loraxs_search.errors import StudyError
from loraxs_search.home import disk_faults, ensure_dir, write_atomic
from loraxs_search.tracking.events import FINAL, Event, from_line, to_line

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """An event and the offset just behind it; `event` is None where the file holds a line that is no event."""

    event: Event | None
    end: int


class Spool:
    """Owns `tracking.jsonl` of one study folder, until closed.

    An event is safe once `append` returns: in the kernel's hands, so it survives kill -9 of this process; final events
    are also flushed to the device. The offset may lag behind what was applied, never run ahead of it.

    Raises:
        StudyError: another living process owns the spool.
        HomeError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = ensure_dir(folder) / "tracking.jsonl"
        self._offset_path = folder / "tracking.offset"
        with disk_faults(self.path):
            self._file = self.path.open("ab", buffering=0)  # a buffer would keep what a full disk did not take
        self._own()
        self._mend()
        self.size = self.path.stat().st_size
        self.offset = min(self._read_offset(), self.size)
        self.study_id = self._study_id(folder)

    def append(self, event: Event) -> None:
        """Add one event at the end, whole or not at all."""
        line = to_line(event)
        with disk_faults(self.path):
            self._write(line)
            if isinstance(event, FINAL):
                os.fsync(self._file.fileno())
        self.size += len(line)

    def read(self, start: int, limit: int) -> list[Entry]:
        """Return up to `limit` entries from offset `start` on."""
        with self.path.open("rb") as file:
            file.seek(start)
            return [entry for entry, _ in zip(_entries(file, start), range(limit), strict=False)]

    def history(self) -> Iterator[Event]:
        """Yield every event of the file, from its beginning."""
        with self.path.open("rb") as file:
            for entry in _entries(file, 0):
                if entry.event is not None:
                    yield entry.event

    def commit(self, offset: int) -> None:
        """Remember that everything before `offset` has been applied."""
        write_atomic(self._offset_path, str(offset))
        self.offset = offset

    def close(self) -> None:
        """Let the spool go: another owner may open it."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        left = memoryview(line)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(self.size)
            raise

    def _own(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise StudyError(
                f"`{self.path.parent}` must have one writer, but another process is recording this study.",
                hint="wait until it ends, or stop it, and try again",
            ) from error

    def _mend(self) -> None:
        """Complete or cut a last line that a killed process left without its newline."""
        with disk_faults(self.path), self.path.open("rb+") as file:
            tail_start = _last_line_start(file)
            file.seek(tail_start)
            tail = file.read()
            if not tail:
                return
            try:
                from_line(tail)
            except ValueError:
                file.truncate(tail_start)
            else:
                file.write(b"\n")

    def _read_offset(self) -> int:
        try:
            return max(0, int(self._offset_path.read_text()))
        except (FileNotFoundError, ValueError):
            return 0  # everything is applied again, which changes nothing

    def _study_id(self, folder: Path) -> str:
        """Return the id that tells this study from one of the same name on another machine."""
        path = folder / "tracking.id"
        if not path.exists():
            write_atomic(path, f"{folder.name}-{secrets.token_hex(4)}")
        return path.read_text().strip()


def _entries(file: BinaryIO, start: int) -> Iterator[Entry]:
    end = start
    for line in file:
        if not line.endswith(b"\n"):
            return  # being written at this moment
        end += len(line)
        try:
            yield Entry(from_line(line), end)
        except ValueError:
            _logger.warning("skipping a line of the spool that is no event, before byte %d", end)
            yield Entry(None, end)


def _last_line_start(file: BinaryIO) -> int:
    """Return the offset behind the last newline."""
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        begin = max(0, position - 65536)
        file.seek(begin)
        newline = file.read(position - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        position = begin
    return 0
