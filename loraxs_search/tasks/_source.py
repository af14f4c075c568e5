"""A task's splits as stored: local files by their ending, or a data set of the hub."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from loraxs_search.errors import TaskDataError, unknown_name
from loraxs_search.home import disk_faults
from loraxs_search.paths import user_path
from loraxs_search.records import Split, Task
from loraxs_search.tasks._columns import Columns, MalformedFileError
from loraxs_search.tasks._faults import collected, joined
from loraxs_search.tasks._files import file_format, read_columns

if TYPE_CHECKING:
    import datasets


class StoredSplit(Protocol):
    """A split that can be read.

    Args:
        is_file: Whether the user holds it, and can correct it.
    """

    is_file: bool

    @property
    def name(self) -> str:
        """Where it is from, for messages."""
        ...

    @property
    def digest(self) -> str | None:
        """What decides its rows, to cache them by; None where something else caches them."""
        ...

    def read(self, task: Task) -> Columns:
        """Return the columns that the task names.

        Raises:
            TaskDataError: it cannot be read, or a column is missing.
        """
        ...


def stored_splits(task: Task, cache_dir: Path) -> dict[Split, StoredSplit]:
    """Find the splits that the task's source has; those it lacks are not in the result.

    Raises:
        TaskDataError: a file or a split is missing; all of them are told.
        HomeError: the cache cannot be written.
    """
    return _local(task) if task.source.data_files else _hub(task, cache_dir)


def wanted_columns(task: Task) -> list[str]:
    """Return the columns that a task names, each once, the label last."""
    return list(dict.fromkeys(name for name in (task.text, task.text_pair, task.label) if name is not None))


# ---- files -----------------------------------------------------------------------------------------------------------
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

    def read(self, task: Task) -> Columns:
        try:
            columns = read_columns(self.path, self.content, wanted_columns(task))
        except MalformedFileError as error:
            raise TaskDataError(f"Task {task.name}: {self.path} {error.message}.", hint=error.hint) from error
        _check(task, columns, self.name)
        return columns


def _local(task: Task) -> dict[Split, StoredSplit]:
    files = task.source.data_files
    found: dict[Split, StoredSplit] = {}
    errors: list[TaskDataError] = []
    for split, name in _names(task, list(files), "data_files").items():
        with collected(errors):
            found[split] = _file_split(task, split, files[name])
    if errors:
        raise joined(task, errors)
    return found


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


# ---- the hub ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _HubSplit:
    rows: datasets.Dataset
    place: str
    is_file = False
    digest = None  # `datasets` has a cache of its own, by commit

    @property
    def name(self) -> str:
        return self.place

    def read(self, task: Task) -> Columns:
        import datasets

        available = list(self.rows.column_names)
        values = self.rows.select_columns([name for name in wanted_columns(task) if name in available])[:]
        _check(task, Columns(available, values), self.name)
        feature = self.rows.features[task.label]
        names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
        return Columns(available, values, stored_names=names)


def _hub(task: Task, cache_dir: Path) -> dict[Split, StoredSplit]:
    import datasets

    source = task.source
    place = f"{source.hub}{f' ({source.config})' if source.config else ''}"
    with _faults(task, place, cache_dir), _no_bars():
        cache = _cache_for(str(source.hub), cache_dir)
        loaded = datasets.load_dataset(source.hub, source.config, revision=source.revision, cache_dir=str(cache))
    names = _names(task, list(loaded), place)
    return {split: _HubSplit(loaded[name], f"{place}, split {name}") for split, name in names.items()}


def _cache_for(hub: str, cache_dir: Path) -> Path:
    """Return where `datasets` may keep what it reads: apart for each content of a local folder.

    It knows a folder's files by path and time, which a copy that keeps times leaves as they were.
    """
    try:
        folder = user_path(hub)
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    except ValueError:  # no folder can have that name
        files = []
    if not files:
        return cache_dir
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)}\0{content}\n".encode("utf-8", "surrogatepass"))
    return cache_dir / "folders" / digest.hexdigest()[:32]


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets` inside the block."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _faults(task: Task, place: str, cache_dir: Path) -> Iterator[None]:
    """Turn what `datasets` raises into our errors; a full disk hides in the cause of its own error."""
    with disk_faults(cache_dir):
        try:
            yield
        except Exception as error:
            # Parsers, decompressors, file systems and the hub's client each have their own family of errors.
            cause = error.__cause__ or error
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise cause from error
            if isinstance(cause, StopIteration) or "corresponds to no data" in str(cause):
                raise _no_rows(task, place) from error
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            raise TaskDataError(
                f"Task {task.name}: {place} must be a readable data set, but: {reason}",
                hint="check the id and the network, or name local files under `data_files`",
            ) from error


# ---- names -----------------------------------------------------------------------------------------------------------
def _names(task: Task, available: list[str], place: str) -> dict[Split, str]:
    """Return our split names to the source's: as declared, or all that go by our names."""
    declared: dict[Split, str] = dict(task.source.splits)
    if not declared:
        ours: tuple[Split, ...] = ("train", "validation", "test")
        declared = {name: name for name in ours if name in available}
    declared.setdefault("train", "train")
    for ours_name, name in declared.items():
        if name not in available:
            raise TaskDataError(
                f"Task {task.name}: {unknown_name(f'splits.{ours_name}', name, available)} Place: {place}.",
                hint="map the source's names under `splits`; only train is required, the others are carved from it",
            )
    return declared


def _check(task: Task, columns: Columns, place: str) -> None:
    if not columns.available:
        raise _no_rows(task, place)
    roles = (("text", task.text), ("text_pair", task.text_pair), ("label", task.label))
    missing = [(role, name) for role, name in roles if name is not None and name not in columns.available]
    if missing:
        laws = " ".join(unknown_name(f"columns.{role}", name, columns.available) for role, name in missing)
        raise TaskDataError(
            f"Task {task.name}: {laws} Place: {place}.", hint="name the data's own columns under `columns`"
        )
    if not columns.values[task.label]:
        raise _no_rows(task, place)


def _no_rows(task: Task, place: str) -> TaskDataError:
    return TaskDataError(
        f"Task {task.name}: a split must have rows, but {place} gives none.",
        hint="check the file; a split that is left out of the space is carved from train",
    )
