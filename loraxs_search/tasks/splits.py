"""The stored splits of a task: in local files, or in data sets of the hub and folders that are laid out as one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from loraxs_search.errors import TaskDataError, first_line, unknown_name
from loraxs_search.home import disk_faults, file_sha256
from loraxs_search.paths import user_path
from loraxs_search.records.literals import Split
from loraxs_search.records.task import SplitSource, Task
from loraxs_search.tasks.files import file_format, label_names, read_columns, warn_of_encoding
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.rows import (
    Columns,
    MalformedFileError,
    collected,
    composed,
    raise_joined,
    with_parents,
    with_parts,
)

if TYPE_CHECKING:
    import datasets


SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class StoredSplit(ABC):
    """A split that can be read.

    Args:
        is_file: Whether it is the user's own file, which they can correct.
        name: Its source, for messages.
        digest: What identifies its rows in the cache; None if something else caches them.
    """

    is_file: ClassVar[bool] = False
    name: str
    digest: str | None = None

    @abstractmethod
    def label_names(self, task: Task) -> list[str] | None:
        """Return the names that the data give to the ids of the column that may have some; None without any."""

    @abstractmethod
    def read(self, task: Task, spare: frozenset[str], slices: Sequence[str]) -> Columns:
        """Return the columns that the task names.

        Args:
            spare: Those that may be missing.
            slices: Further ones, which say which groups a row is of.
        Raises:
            TaskDataError: it cannot be read, or a column is missing.
        """


def wanted_columns(task: Task, slices: Sequence[str] = ()) -> list[str]:
    """Return the columns that a task names, and `slices`, each once; the one that may have label names is the last."""
    wanted = list(dict.fromkeys(kind_of(task).columns.values()))
    return [*(name for name in slices if name not in wanted), *wanted]


def find_splits(task: Task, cache_dir: Path) -> dict[Split, StoredSplit]:
    """Find a task's splits; those that it lacks are not in the result.

    Raises:
        TaskDataError: a file, a data set or a split is missing, or two splits number their labels differently.
        HomeError: the cache cannot be written.
    """
    splits = _local_splits(task) if task.source.data_files else _hub_splits(task, cache_dir)
    for split, other in task.source.elsewhere.items():
        splits[split] = _split_elsewhere(task, split, other, cache_dir)
    _check_numbering(task, splits)
    return splits


def _split_names(task: Task, available: list[str], place: str) -> dict[Split, str]:
    """Return our split names to the source's: as declared, or all that go by our names."""
    declared: dict[Split, str] = dict(task.source.splits)
    if not declared:
        declared = {name: name for name in SPLITS if name in available}
    declared.setdefault("train", "train")
    for split, name in declared.items():
        if name not in available:
            raise TaskDataError(
                f"Task {task.name}: {unknown_name(f'splits.{split}', name, available)} Place: {place}.",
                hint="map the source's names under `splits`; only train is required, the others are carved from it",
            )
    return declared


def _check_numbering(task: Task, splits: Mapping[Split, StoredSplit]) -> None:
    """Refuse splits in which an id has different names, unless all names are the task's, which then decide."""
    if not task.labels:
        return
    known = {composed(name).casefold() for name in task.labels}
    named = [(split, names) for split in splits.values() if (names := split.label_names(task)) is not None]
    for split, names in named[1:]:
        first, others = named[0]
        differing = next((id_ for id_, pair in enumerate(zip(others, names, strict=False)) if pair[0] != pair[1]), None)
        if differing is not None and not {composed(name).casefold() for name in (*others, *names)} <= known:
            raise TaskDataError(
                f"Task {task.name}: an id must have one name in all splits, but {differing} is {others[differing]!r} in"
                f" {first.name} and {names[differing]!r} in {split.name}.",
                hint="give the task's `labels` the names of the data, which then decide, or number the splits alike",
            )


def _check_columns(task: Task, columns: Columns, place: str, spare: frozenset[str], slices: Sequence[str]) -> None:
    no_rows = _no_rows(f"Task {task.name}: ", place)
    if not columns.available:
        raise no_rows
    wanted = kind_of(task).columns
    named = [*wanted.items(), *(("slices", name) for name in slices)]
    missing = [(key, name) for key, name in named if name not in {*columns.available, *spare}]
    if missing:
        laws = " ".join(unknown_name(key, name, columns.available) for key, name in missing)
        section = missing[0][0].partition(".")[0]
        raise TaskDataError(
            f"Task {task.name}: {laws} Place: {place}.", hint=f"name the data's own columns under `{section}`"
        )
    if not columns.values[list(wanted.values())[-1]]:
        raise no_rows


def _no_rows(who: str, place: str) -> TaskDataError:
    return TaskDataError(
        f"{who}a split must have rows, but {place} gives none.",
        hint="check the file; a split that is left out of the space is carved from train",
    )


def _local_splits(task: Task) -> dict[Split, StoredSplit]:
    """Find the files of a task's splits; the error lists all that are missing."""
    files: dict[str, str] = {split: path for split, path in task.source.data_files.items()}  # noqa: C416
    splits: dict[Split, StoredSplit] = {}
    errors: list[TaskDataError] = []
    for split, name in _split_names(task, list(files), "data_files").items():
        with collected(errors):
            splits[split] = _file_split(task, split, files[name])
    raise_joined(task, errors)
    return splits


class _FileSplit(StoredSplit):
    is_file = True

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content, self.name = path, content, str(path)
        self.digest = f"{file_format(path)} {path.suffix.lower()} {hashlib.sha256(content).hexdigest()}"

    def label_names(self, task: Task) -> list[str] | None:
        try:
            return label_names(self.path, wanted_columns(task)[-1], self.content)
        except MalformedFileError:  # said when it is read
            return None

    def read(self, task: Task, spare: frozenset[str], slices: Sequence[str]) -> Columns:
        wanted = wanted_columns(task, slices)
        warn_of_encoding(self.path, self.content)
        try:
            columns = read_columns(self.path, self.content, wanted)
            if absent := spare.difference(columns.available):  # of a table that lacks a column, no row is read
                columns = read_columns(self.path, self.content, [name for name in wanted if name not in absent])
        except MalformedFileError as error:
            raise TaskDataError(f"Task {task.name}: {self.path} {error.message}.", hint=error.hint) from error
        _check_columns(task, columns, self.name, spare, slices)
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


_CONFIGS = re.compile(r"pick one among the available configs: \[(?P<names>[^\]]*)\]")
_SLICE = re.compile(r"(?P<split>[^\[\]]+)(\[(?P<first>\d*):(?P<end>\d*)\])?")  # `train`, `train[:1000]`


def _hub_splits(task: Task, cache_dir: Path) -> dict[Split, StoredSplit]:
    source = task.source
    place = _place(source.hub, source.config)
    loaded = load_splits(source.hub, source.config, source.revision, cache_dir, f"Task {task.name}: ")
    declared = {split: _split_name(name) for split, name in source.splits.items()}
    names = _split_names(replace(task, source=replace(source, splits=declared)), list(loaded), place)
    return {
        split: _HubSplit(_slice(loaded[name], source.splits.get(split, name)), f"{place}, split {name}")
        for split, name in names.items()
    }


def _split_elsewhere(task: Task, split: Split, other: SplitSource, cache_dir: Path) -> StoredSplit:
    place, name = _place(other.hub, other.config), _split_name(other.split)
    loaded = load_splits(other.hub, other.config, other.revision, cache_dir, f"Task {task.name}: ")
    if name not in loaded:
        raise TaskDataError(
            f"Task {task.name}: {unknown_name(f'data.{split}.split', name, list(loaded))} Place: {place}.",
            hint="name a split that the data set has",
        )
    return _HubSplit(_slice(loaded[name], other.split), f"{place}, split {name}", other.rename)


def load_splits(
    hub: str | None, config: str | None, revision: str | None, cache_dir: Path, who: str = ""
) -> datasets.DatasetDict:
    """Load a data set.

    Args:
        who: What messages begin with: the task that it is for, if there is one yet.
    Raises:
        TaskDataError: it is missing, or has several configurations and none was named.
        HomeError: the cache cannot be written.
    """
    import datasets

    with _faults(who, _place(hub, config), cache_dir), _no_bars():
        cache, files = _cache_for(str(hub), cache_dir), dict[str, list[str]]()
        loaded = datasets.load_dataset(hub, config, revision=revision, cache_dir=str(cache))
        if cache != cache_dir:  # a folder of this machine
            files = datasets.load_dataset_builder(hub, config, cache_dir=str(cache)).config.data_files or {}
    _check_files(who, next(iter(loaded.values())), [Path(file) for own in files.values() for file in own])
    return loaded


def _check_files(who: str, rows: datasets.Dataset, files: Sequence[Path]) -> None:
    """Refuse files of a folder that give an id other names than `datasets` does, which reads all as the first one."""
    import datasets

    named = {name: it.names for name, it in rows.features.items() if isinstance(it, datasets.ClassLabel)}
    for file in (file for file in files if file.suffix == ".parquet"):
        for column, names in named.items():
            own = label_names(file, column)
            if differing := [pair for pair in zip(names, own or (), strict=False) if pair[0] != pair[1]]:
                raise TaskDataError(
                    f"{who}an id of {column} must have one name in all files, but the one of {differing[0][0]!r} is"
                    f" {differing[0][1]!r} in {file}.",
                    hint="number the labels of all files alike, or name the files under `data_files`",
                )


def _place(hub: str | None, config: str | None) -> str:
    return f"{hub}{f' ({config})' if config else ''}"


def _split_name(written: str) -> str:
    match = _SLICE.fullmatch(written)
    return match["split"] if match else written


def _slice(rows: datasets.Dataset, written: str) -> datasets.Dataset:
    """Return the rows that a name such as `train[:1000]` takes; all of them where it has no slice."""
    match = _SLICE.fullmatch(written)
    if match is None or match["first"] is None:
        return rows
    first, end = int(match["first"] or 0), int(match["end"] or len(rows))
    return rows.select(range(min(first, len(rows)), min(end, len(rows))))


class _HubSplit(StoredSplit):
    """It has no digest: `datasets` has its own cache, by commit.

    Args:
        rename: Its names to the task's.
    """

    def __init__(self, rows: datasets.Dataset, place: str, rename: Mapping[str, str] = MappingProxyType({})) -> None:
        self.name, self.rows = place, rows.rename_columns({a: b for a, b in rename.items() if a in rows.column_names})

    def label_names(self, task: Task) -> list[str] | None:
        import datasets

        feature = self.rows.features.get(wanted_columns(task)[-1])
        feature = getattr(feature, "feature", feature)  # of a list, that of its items
        return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None

    def read(self, task: Task, spare: frozenset[str], slices: Sequence[str]) -> Columns:
        wanted, available = wanted_columns(task, slices), list(self.rows.column_names)
        values = self.rows.select_columns([name for name in with_parents(wanted) if name in available])[:]
        columns = with_parts(Columns(available, values), wanted)
        _check_columns(task, columns, self.name, spare, slices)
        return replace(columns, stored_names=self.label_names(task))


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
        digest.update(f"{path.relative_to(folder)}\0{file_sha256(path)}\n".encode("utf-8", "surrogatepass"))
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
def _faults(who: str, place: str, cache_dir: Path) -> Iterator[None]:
    """Turn what `datasets` raises into our errors; a full disk hides in the cause of their error."""
    with disk_faults(cache_dir):
        try:
            yield
        except Exception as error:
            # Parsers, decompressors, file systems and the hub's client each have their own family of errors.
            cause = error.__cause__ or error
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise cause from error
            if isinstance(cause, StopIteration) or "corresponds to no data" in str(cause):
                raise _no_rows(who, place) from error
            if configs := _CONFIGS.search(str(cause)):
                raise TaskDataError(
                    f"{who}{place} must be read in one of its configurations: {configs['names'].replace(chr(39), '')}.",
                    hint="name it: `data.config` in a space, --config for `init`",
                ) from error
            reason = first_line(cause)
            raise TaskDataError(
                f"{who}{place} must be a readable data set, but: {reason}",
                hint="check the id and the network, or name local files under `data_files`",
            ) from error
