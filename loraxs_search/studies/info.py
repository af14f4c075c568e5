"""What a study began with, and how a study's files are read: damage by a disk or a hand is reported with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from loraxs_search.errors import StudyError
from loraxs_search.home import write_atomic
from loraxs_search.log.study_log import DAMAGED_HINT, unreadable
from loraxs_search.records.adapter import StartFrom
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.search import PromotionRule, SearchPlan
from loraxs_search.records.task import BaseModelRef, Task

RecordT = TypeVar("RecordT")


@dataclass(frozen=True)
class RecordFile(Generic[RecordT]):
    """A file of a study that holds one record, written whole; `cls` is what pydantic reads it as."""

    cls: type[RecordT]
    path: Path
    indent: int | None = None

    def read(self) -> RecordT | None:
        """Return the record; None if there is no file.

        Raises:
            StudyError: the file cannot be read, or holds no such record.
        """
        return self.load() if self.path.exists() else None

    def load(self) -> RecordT:
        """Return the record; a missing file is refused, too."""
        return _parse_record(self.cls, read_text(self.path), str(self.path))

    def write(self, record: RecordT) -> None:
        """Put a record in place of the one before.

        Raises:
            HomeError: the file cannot be written.
        """
        write_atomic(self.path, to_json(record, indent=self.indent))


def _parse_record(cls: type[RecordT], text: str | bytes, place: str) -> RecordT:
    """Read the text of a file that holds one record.

    Args:
        place: The file, as people name it.
    Raises:
        StudyError: it holds no such record.
    """
    try:
        return from_json(cls, text)
    except ValueError as error:  # pydantic's listing: below a heading, a field and what is wrong with it
        fault = " ".join(str(error).partition("\n")[2].partition(" [type=")[0].split())
        raise _damaged(place, fault) from error


def read_text(path: Path) -> str:
    """Read a file of text.

    Raises:
        StudyError: it is missing, no text, or the system does not let it be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise _damaged(str(path), "it is missing") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise _damaged(str(path), f"it holds bytes that are no text at {error.start}") from error


def _damaged(place: str, why: str) -> StudyError:
    return StudyError(f"A study's files must be whole, but {place}: {why}.", hint=DAMAGED_HINT)


STUDY_FORMAT = 1  # of a study and its log; rises only when an older reader would read wrongly


@dataclass(frozen=True)
class StudyInfo:
    """What a study searches, fixed when it is created.

    Args:
        study_id: Never used twice, even when a name is.
        space_source: Path or shipped name the space was read from; `space_folder` is where its relative paths start.
        tracking_uri: Where its trials are recorded; no user and no password are in it.
        start_from: The registered adapter that its trials start from; None if they start anew.
        storage: Where copies of its folder are kept, for drivers on other machines; None means nowhere.
        format: `STUDY_FORMAT` of the version that launched it.
    """

    name: str
    study_id: str
    task: Task
    base_model: BaseModelRef
    search: SearchPlan
    promotion: PromotionRule
    space_source: str
    space_folder: str
    tracking_uri: str
    created_at: float
    versions: Mapping[str, str] = field(default_factory=dict)
    storage: str | None = None
    start_from: StartFrom | None = None
    format: int = STUDY_FORMAT

    @classmethod
    def parse(cls, text: str | bytes, folder: str) -> StudyInfo:
        """Read the text of a `study.json`.

        Args:
            folder: The one that holds it, here or in a storage, as people name it.
        Raises:
            StudyError: it is damaged, of another format, or the folder was renamed or is a copy: a study would be
                trained where its name leads.
        """
        place = f"{folder}/study.json"
        found = _parse_record(dict[str, object], text, place).get("format")
        if found != STUDY_FORMAT:
            raise StudyError(
                f"`format` must be {STUDY_FORMAT}, but got {found} in {place}.",
                hint="use the version of loraxs-search that launched the study, or launch its space again",
            )
        info = _parse_record(cls, text, place)
        if info.name != folder.rpartition("/")[2]:
            raise StudyError(
                f"A study's folder must have its name, but {folder} holds study {info.name!r}.",
                hint=f"rename it back to {info.name}, or remove it if it is a copy",
            )
        return info
