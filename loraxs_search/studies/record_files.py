"""A study's files that hold records: what it began with, and results on its candidates.

Each is written whole, so that a driver that was killed continues from them. Damage by a disk or a hand is reported with
its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from loraxs_search.errors import HomeError, StudyError
from loraxs_search.home import disk_faults, ensure_dir, exclusive, home, write_atomic
from loraxs_search.log.study_log import DAMAGED_HINT, unreadable
from loraxs_search.records.adapter import Answers, StartFrom
from loraxs_search.records.codec import Split, check_trial_id, from_json, to_json
from loraxs_search.records.search import Baseline, Candidate, PromotionRule, Refit, SearchPlan
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


class Confirmations:
    """Refits, scores on all validation rows, answers to test rows, and the finalist, in `confirmed/` of a study.

    A file is written whole, once its work is done: what has none is to be done, what has one is not done again.

    Attributes:
        base_rows_path: The safetensors file with the answers of the untouched base to the test rows.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.base_rows_path = path, path / "base.safetensors"

    def finalist(self, trial_id: str) -> Candidate | None:
        """Return the finalist, once it has been scored on the test rows and kept."""
        return RecordFile(Candidate, self._path / f"{check_trial_id(trial_id)}.json").read()

    def finalists(self) -> tuple[str, ...]:
        """Return the adapters that have answered all test rows, by name."""
        return tuple(sorted(path.stem for path in self._path.glob("*.safetensors") if path != self.base_rows_path))

    def keep_finalist(self, finalist: Candidate, rows: bytes) -> None:
        """Keep the scored finalist and its answers, which are written first; before that, that they were made."""
        if finalist.test_fingerprint:
            path, own = _uses_path(finalist.test_fingerprint), [finalist.task, finalist.key]
            ensure_dir(path.parent)
            with disk_faults(path), exclusive(path):
                if own not in (known := _read_uses(path)):
                    write_atomic(path, json.dumps([*known, own], indent=1))
        write_atomic(self.rows_path(finalist.trial_id), rows)
        write_atomic(self._path / f"{finalist.trial_id}.json", to_json(finalist, indent=2))

    def rows_path(self, trial_id: str) -> Path:
        """Return the safetensors file with the finalist's answers to the test rows."""
        return self._path / f"{check_trial_id(trial_id)}.safetensors"

    def refit(self, name: str) -> RecordFile[Refit]:
        """Return the file of a refit that has been trained."""
        return RecordFile(Refit, self._path / f"{check_trial_id(name)}.refit.json")

    def validation(self, name: str) -> RecordFile[dict[str, float]]:
        """Return the file of a candidate's metrics on all validation rows; they are empty where it has none."""
        return RecordFile(dict[str, float], self._path / f"{check_trial_id(name)}.validation.json")

    def base_failure(self, shots: int) -> RecordFile[Baseline]:
        """Return the file that says why the untouched base could not answer with so many worked examples."""
        return RecordFile(Baseline, self._path / f"base-{shots}.failed.json")

    def answers(self, of: str | int, split: Split = "test") -> dict[range, Answers]:
        """Return answers to rows of a split, by the rows that they are to, first rows first.

        Args:
            of: An adapter's name; of the untouched base, the number of worked examples in each prompt.
        """
        by_rows = {}
        for path in self._path.glob(f"{_owner(of)}.{split}-*-*.json"):
            start, stop = path.stem.rpartition(".")[2].split("-")[1:]
            by_rows[range(int(start), int(stop))] = RecordFile(Answers, path).load()
        return dict(sorted(by_rows.items(), key=lambda item: item[0].start))

    def write_answers(self, of: str | int, rows: range, answers: Answers, split: Split = "test") -> None:
        """Keep answers to these rows of a split; see `answers`."""
        write_atomic(self._path / f"{_owner(of)}.{split}-{rows.start}-{rows.stop}.json", to_json(answers))


def _owner(of: str | int) -> str:
    return check_trial_id(of) if isinstance(of, str) else f"base-{of}"


# ---- which finalists have answered which test rows on this machine: each counts as a comparison on them --------------
# A file for each set of test rows, by its fingerprint. It is written when answers are kept, and outlives its study.
def uses(task: str, test_fingerprint: str) -> list[str]:
    """Return the keys of a task's finalists that have answered these test rows, in order.

    Raises:
        HomeError: the file is damaged.
    """
    return [key for known, key in _read_uses(_uses_path(test_fingerprint)) if known == task]


def _uses_path(test_fingerprint: str) -> Path:
    return home() / "test_set_uses" / f"{test_fingerprint}.json"


def _read_uses(path: Path) -> list[list[str]]:
    try:
        return [[str(task), str(key)] for task, key in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise HomeError(
            f"{path} must list the finalists that have answered these test rows, but it is damaged.",
            hint="restore it from a backup: without it, a comparison on these rows would be held to too little",
        ) from error
