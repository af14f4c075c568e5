"""The log of a study: typed events, appended by its driver, read on by anyone from where they stopped.

Below it, `AppendLog`: a file of lines that one process appends to and any may read, whole after a kill and after a full
disk.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from loraxs_search.errors import StudyError
from loraxs_search.home import disk_faults
from loraxs_search.log.events import LoggedEvent
from loraxs_search.records.codec import to_json


class AppendLog:
    """Lines appended by one writer. A line counts once it ends with a newline.

    What a killed writer or a full disk left at the end without one is passed over by readers and cut off by the next
    write.

    Args:
        path: The file; it is created by the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0  # offset behind what was read or written

    def new_lines(self) -> Iterator[bytes]:
        """Yield the lines that follow `end`, which moves behind a line once the next one is asked for."""
        for line, end in lines_from(self.path, self.end):
            yield line
            self.end = end

    def skip(self) -> None:
        """Go behind the last line without a look at what it says."""
        for _ in self.new_lines():
            pass

    def append(self, lines: bytes, *, flush_to_device: bool = False) -> None:
        """Write lines, newlines included, behind the last one; the kernel has them when this returns.

        Raises:
            HomeError: no space left, or no right to write; the lines before are as they were.
        """
        with disk_faults(self.path), open(self.path, "wb", buffering=0, opener=_not_emptied) as file:
            file.truncate(self.end)
            file.seek(self.end)
            left = memoryview(lines)
            while left:  # a disk that fills up takes a part
                left = left[file.write(left) :]
            if flush_to_device:
                os.fsync(file.fileno())
        self.end += len(lines)


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


def _not_emptied(path: str, _: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)


DAMAGED_HINT = "restore the file from a backup, or launch the study again under another name"
_OF_NO_LINE = ("event", "at", "study")
_logger = logging.getLogger(__name__)


class EventLog:
    """A study's `journal.jsonl`.

    One process appends, which holds the study's lock, from one object: a line that a kill has torn is cut off by the
    next append. Anyone reads, each object from its own offset.

    Args:
        study: Its name, which the events that are read carry.
        offset: Where to begin to read.
    """

    def __init__(self, path: Path, study: str | None = None, offset: int = 0) -> None:
        self._file, self._study = AppendLog(path), study
        self._file.end = offset

    @property
    def offset(self) -> int:
        """The place behind the last event that was read or appended, in bytes."""
        return self._file.end

    def new(self) -> Iterator[LoggedEvent]:
        """Yield the events behind the offset, which moves behind an event once the next one is asked for.

        Raises:
            StudyError: the log is damaged.
        """
        for line in self._file.new_lines():
            if (event := self._event(line)) is not None:
                yield event

    def read(self, limit: int) -> list[LoggedEvent]:
        """Return the events of at most so many lines behind the offset, which moves behind them.

        Raises:
            StudyError: as `new`.
        """
        events: list[LoggedEvent] = []
        for line, end in islice(lines_from(self._file.path, self._file.end), limit):
            event = self._event(line)
            self._file.end = end
            events += [] if event is None else [event]
        return events

    def append(self, event: LoggedEvent) -> None:
        """Write an event behind the last one that was read; it survives a kill of this process.

        Raises:
            HomeError: no space left, or no right to write; the log is as it was.
        """
        self._file.append(to_line(event), flush_to_device=event.is_flushed)

    def damaged(self) -> StudyError:
        """Return the error of a log whose line behind the offset is no event."""
        return StudyError(
            f"Every line of a journal must be an event, but {self._file.path} is damaged at byte {self._file.end}.",
            hint=DAMAGED_HINT,
        )

    def _event(self, line: bytes) -> LoggedEvent | None:
        try:
            return from_line(line, self._study)
        except _UnknownKindError as error:  # such as later versions may add without another format
            _logger.warning("journal %s holds an unknown event %r; it is ignored", self._file.path, error.args[0])
            return None
        except (ValueError, TypeError) as error:
            raise self.damaged() from error


class _UnknownKindError(ValueError):
    """No event is of this kind, the only argument."""


def to_line(event: LoggedEvent) -> bytes:
    """Return an event as its line, newline included."""
    fields = {
        each.name: getattr(event, each.name) for each in dataclasses.fields(event) if not _is_default(event, each)
    }
    line = {"event": event.event, **fields, "at": event.at}
    text = to_json(line, sort_keys=False)  # samplers go by the order of parameters
    if "\\ud" in text:  # maybe half a character, as in a file's name that is no text: no reader takes a line with it
        text = json.dumps(json.loads(text), ensure_ascii=False)
    return text.encode(errors="replace") + b"\n"


def from_line(line: bytes, study: str | None = None) -> LoggedEvent:
    """Rebuild an event from its line.

    Raises:
        ValueError: the line is no event.
    """
    from pydantic import ValidationError

    try:
        event: LoggedEvent = _adapter().validate_json(line)
    except ValidationError as error:
        if error.errors()[0]["type"] != "union_tag_invalid" or not isinstance(kind := json.loads(line)["event"], str):
            raise
        raise _UnknownKindError(kind) from None
    return dataclasses.replace(event, study=study)


def _is_default(event: LoggedEvent, each: dataclasses.Field[Any]) -> bool:
    if each.name in _OF_NO_LINE:
        return True
    default = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
    return bool(getattr(event, each.name) == default)


@functools.cache
def _adapter() -> Any:
    from pydantic import Field, TypeAdapter  # late: costs a tenth of a second

    return TypeAdapter(Annotated[LoggedEvent, Field(discriminator="event")])
