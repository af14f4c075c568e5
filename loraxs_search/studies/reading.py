"""Reading a study's files: what a disk or a hand has damaged is reported with its place."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from loraxs_search.errors import StudyError
from loraxs_search.home import disk_faults
from loraxs_search.log.event_log import DAMAGED_HINT
from loraxs_search.records import from_json

RecordT = TypeVar("RecordT")


def read_record(cls: type[RecordT], path: Path) -> RecordT:
    """Read a file that holds one record.

    Raises:
        StudyError: it is missing, or holds no such record.
    """
    return parse_record(cls, read_text(path), str(path))


def parse_record(cls: type[RecordT], text: str | bytes, place: str) -> RecordT:
    """Read the text of a file that holds one record.

    Args:
        place: The file, as people name it.
    Raises:
        StudyError: it holds no such record.
    """
    try:
        return from_json(cls, text)
    except ValueError as error:
        raise _damaged(place, _first_fault(str(error))) from error


def read_text(path: Path) -> str:
    """Read a file of text.

    Raises:
        StudyError: it is missing, or no text.
    """
    try:
        with disk_faults(path):
            return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise _damaged(str(path), "it is missing") from error
    except UnicodeDecodeError as error:
        raise _damaged(str(path), f"it holds bytes that are no text at {error.start}") from error


def _first_fault(text: str) -> str:
    """Return the first fault of pydantic's listing: below a heading, a field and what is wrong with it."""
    return " ".join(text.partition("\n")[2].partition(" [type=")[0].split())


def _damaged(place: str, why: str) -> StudyError:
    return StudyError(f"A study's files must be whole, but {place}: {why}.", hint=DAMAGED_HINT)
