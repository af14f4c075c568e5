"""Splits in local files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from loraxs_search.errors import TaskDataError
from loraxs_search.paths import user_path
from loraxs_search.records import Split, Task
from loraxs_search.tasks._columns import Columns, MalformedFileError
from loraxs_search.tasks._faults import collected, joined
from loraxs_search.tasks._files import file_format, label_names, read_columns
from loraxs_search.tasks._source import StoredSplit, check_columns, split_names, wanted_columns


def local_splits(task: Task) -> dict[Split, StoredSplit]:
    """Find the files of a task's splits; those that it lacks are not in the result.

    Raises:
        TaskDataError: a file or a split is missing; the message lists all of them.
    """
    files = task.source.data_files
    splits: dict[Split, StoredSplit] = {}
    errors: list[TaskDataError] = []
    for split, name in split_names(task, list(files), "data_files").items():
        with collected(errors):
            splits[split] = _file_split(task, split, files[name])
    if errors:
        raise joined(task, errors)
    return splits


@dataclass(frozen=True)
class _FileSplit:
    path: Path
    content: bytes
    is_file = True

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def digest(self) -> str:
        return f"{file_format(self.path)} {self.path.suffix.lower()} {hashlib.sha256(self.content).hexdigest()}"

    def label_names(self, task: Task) -> list[str] | None:
        try:
            return label_names(self.path, self.content, wanted_columns(task)[-1])
        except MalformedFileError:  # said when it is read
            return None

    def read(self, task: Task, spare: frozenset[str] = frozenset()) -> Columns:
        try:
            columns = read_columns(self.path, self.content, wanted_columns(task))
        except MalformedFileError as error:
            raise TaskDataError(f"Task {task.name}: {self.path} {error.message}.", hint=error.hint) from error
        check_columns(task, columns, self.name, spare)
        return columns


def _file_split(task: Task, split: Split, name: str) -> _FileSplit:
    try:
        path = user_path(name)
        file_format(path)
        if not path.is_file():
            raise ValueError("there is none")
        return _FileSplit(path, path.read_bytes())
    except MalformedFileError as error:
        raise TaskDataError(
            f"Task {task.name}: a data file {error.message}, but got {path}.", hint=error.hint
        ) from None
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TaskDataError(
            f"Task {task.name}: the {split} split must be a readable file, but {name[:300]} is not: {reason}.",
            hint="paths in `data_files` are relative to the file that declares the task",
        ) from error
