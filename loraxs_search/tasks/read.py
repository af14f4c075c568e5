"""A task's rows in memory: read, validated, carved into splits, with a fingerprint of their content.

The checked rows of a file are cached by its content: it is parsed once, whatever its name and time. A table in the
cache is a file that is whole or not there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loraxs_search.errors import TaskDataError, first_line, unknown_name
from loraxs_search.home import disk_faults, ensure_dir, file_sha256, home, mark_used, write_atomic
from loraxs_search.paths import user_path
from loraxs_search.records.codec import to_json
from loraxs_search.records.literals import Split
from loraxs_search.records.task import SplitSource, Task
from loraxs_search.tasks.files import file_format, label_names, read_columns, warn_of_encoding
from loraxs_search.tasks.kinds import TaskKind, kind_of
from loraxs_search.tasks.rows import (
    Columns,
    MalformedFileError,
    Rows,
    SourceLocation,
    collected,
    composed,
    is_text,
    raise_joined,
    refuse,
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


def load_table(path: Path) -> pa.Table | None:
    """Map a table into memory; None when there is none, or it is damaged."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError):  # Arrow says either of a file that is cut short
        return None
    mark_used(path)
    return table


def numbers_of(column: pa.Array) -> npt.NDArray[Any]:
    """Return a column of numbers without a copy, read-only; Arrow's own `to_numpy` imports pandas: half a second."""
    return np.from_dlpack(column)


def store_table(path: Path, table: pa.Table) -> None:
    """Write a table.

    Raises:
        HomeError: the file cannot be written.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_atomic(path, sink.getvalue().to_pybytes())


_EXTRA, _SLICE_COLUMN = "extra.", "slice."  # before the names of columns that a kind adds, and of those of slices
_MAX_VALUES = 50  # of a slice column; with more it tells rows apart rather than groups
_VERSION = "6"  # raised whenever the same bytes are read as other rows


def rows_cache(cache_dir: Path | None) -> Path:
    """Return the folder of cached rows, which is there then; None means home()/"datasets"."""
    return ensure_dir(cache_dir if cache_dir is not None else home() / "datasets")


def _rows_path(
    task: Task, digest: str, cache_dir: Path, spare: frozenset[str], most: int | None, slices: Sequence[str]
) -> Path:
    """Return where the rows of a file are kept: all that decides them is in the name.

    Args:
        spare: Columns that may be missing.
        most: Characters of the longest row; None if all rows are read.
    """
    parts = (_VERSION, digest, task.text, task.text_pair, task.label, task.kind, *task.labels)
    if task.settings:
        parts += (to_json(task.settings),)
    if most is not None:
        parts += (f"max_characters={most}",)
    if spare:
        parts += (f"without {sorted(spare)}",)
    if slices:
        parts += (f"slices={list(slices)}",)
    return cache_dir / "rows" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:40]}.arrow"


def _load_rows(path: Path, source: str) -> Rows | None:
    """Return rows, as those of a file of this name; None when they are not there."""
    table = load_table(path)
    if table is None:
        return None
    columns = {name: table.column(name).to_pylist() for name in table.column_names if name != "label"}
    extras, slices = (
        {name.removeprefix(start): values for name, values in columns.items() if name.startswith(start)}
        for start in (_EXTRA, _SLICE_COLUMN)
    )
    labels, place = _labels(table.column("label").combine_chunks()), SourceLocation(source, columns.get("line"))
    return Rows(columns["text"], columns.get("pair"), labels, extras, place, slices)


def _store_rows(path: Path, rows: Rows) -> None:
    """Keep rows.

    Raises:
        HomeError: the cache cannot be written.
    """
    columns: dict[str, pa.Array] = {"text": pa.array(rows.texts, pa.large_string())}
    if rows.pairs is not None:
        columns["pair"] = pa.array(rows.pairs, pa.large_string())
    if rows.place is not None and rows.place.lines is not None:
        columns["line"] = pa.array(rows.place.lines, pa.int32())
    extras = {f"{_EXTRA}{name}": pa.array(values) for name, values in rows.extras.items()}
    extras |= {f"{_SLICE_COLUMN}{name}": pa.array(values, pa.large_string()) for name, values in rows.slices.items()}
    ensure_dir(path.parent)
    store_table(path, pa.table({**columns, "label": pa.array(rows.labels), **extras}))


def _labels(column: pa.Array) -> npt.NDArray[Any]:
    return np.array(column.to_pylist(), object) if pa.types.is_string(column.type) else numbers_of(column).copy()


_CARVED_SHARE, _FEWEST = 0.1, 10  # of train, and so many rows that this share is a whole row
_CARVE_SEED = "loraxs-search carve 1"


def read_rows(kind: TaskKind, cache_dir: Path) -> dict[Split, Rows]:
    """Read and validate the splits that exist, and carve the others from train.

    The rows of a file are cached by its content, so that it is parsed once.

    Raises:
        TaskDataError: texts or labels do not fit the declaration, or a split is empty; all faults of all splits.
        HomeError: the cache cannot be written.
    """
    task = kind.task
    stored = find_splits(task, cache_dir)
    rows: dict[Split, Rows] = {}
    errors: dict[Split, list[TaskDataError]] = {name: [] for name in stored}
    gives_test: Split = "test" if "test" in stored else "train"
    for name in sorted(stored, key=("test", "train", "validation").index):
        with collected(errors[name]):
            read = _read(kind, name, stored[name], cache_dir, task.slices if name == gives_test else ())
            if read is None:  # its answers are hidden
                gives_test = "train"
            else:
                rows[name] = read
    raise_joined(task, [error for own in errors.values() for error in own])
    carved = _carve(task, rows, stored["train"].name)
    _check_slices(task, carved["test"])
    return carved


def fingerprint(rows: dict[Split, Rows], splits: Sequence[Split] = SPLITS) -> str:
    """Return the sha256 of these splits' texts and labels: the same on every machine, whatever the files are called."""
    digest = hashlib.sha256()
    for name in splits:
        split = rows[name]
        digest.update(f"{name} {len(split)}\n".encode())
        for column in (split.texts, split.pairs or []):
            digest.update(_column_digest(column))
        digest.update(_label_digest(split.labels))
        for extra in sorted(split.extras):
            digest.update(_column_digest([extra, *map(_text, split.extras[extra])]))
    return digest.hexdigest()


def _label_digest(labels: npt.NDArray[Any]) -> bytes:
    if labels.dtype.kind in "UO":
        return _column_digest(labels.tolist())
    return labels.astype("<i8" if labels.dtype.kind == "i" else "<f4").tobytes()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _column_digest(column: list[str]) -> bytes:
    encoded = [text.encode() for text in column]
    lengths = np.fromiter(map(len, encoded), dtype="<i8", count=len(encoded))
    return hashlib.sha256(lengths.tobytes() + b"".join(encoded)).digest()


def fixed_subset(n: int, limit: int | None) -> npt.NDArray[np.int64]:
    """Return at most `limit` of n row numbers, ascending: always the same ones, drawn by a hash of the number."""
    if limit is None or limit >= n:
        return np.arange(n, dtype=np.int64)
    keys = [hashlib.blake2b(str(row).encode(), digest_size=8).digest() for row in range(n)]
    return np.array(sorted(sorted(range(n), key=keys.__getitem__)[:limit]), dtype=np.int64)


# ---- reading ---------------------------------------------------------------------------------------------------------
def _read(kind: TaskKind, name: Split, split: StoredSplit, cache_dir: Path, slices: Sequence[str]) -> Rows | None:
    """Return the rows of a split, from the cache when they are there; None of one whose labels are hidden."""
    spare = kind.spare_in_test if name == "test" else frozenset[str]()
    most = kind.task.source.max_characters if name == "train" else None
    path = None if split.digest is None else _rows_path(kind.task, split.digest, cache_dir, spare, most, slices)
    if path is not None and (known := _load_rows(path, split.name)) is not None:
        return known
    columns = split.read(kind.task, spare, slices)
    if name == "test" and kind.hides_answers(columns):
        if split.is_file:
            column = wanted_columns(kind.task)[-1]
            values, place = columns.values.get(column, []), SourceLocation(split.name, columns.lines)
            hint = "write the answers, or leave the file out: then a tenth of train is set aside as test rows"
            refuse(kind.task, f"`{column}` of test rows must have answers", values, range(len(values)), place, hint)
        return None
    if most is not None:
        columns = _short_rows(kind.task, columns, most)
    rows = _validated(kind, columns, split, slices)
    if path is not None:
        _store_rows(path, rows)
    return rows


def _short_rows(task: Task, columns: Columns, limit: int) -> Columns:
    """Leave out rows of more characters than the task allows, in all columns that it reads."""
    read = [columns.values[name] for name in wanted_columns(task)]
    kept = [i for i, row in enumerate(zip(*read, strict=True)) if sum(map(_characters, row)) <= limit]
    if not kept:
        raise TaskDataError(
            f"Task {task.name}: some training row must have at most max_characters={limit} characters, but none has.",
            hint="raise `max_characters`",
        )
    lines = None if columns.lines is None else [columns.lines[i] for i in kept]
    values = {name: [column[i] for i in kept] for name, column in columns.values.items()}
    return replace(columns, lines=lines, values=values)


def _characters(value: object) -> int:
    return sum(map(_characters, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 0


def _validated(kind: TaskKind, columns: Columns, split: StoredSplit, slices: Sequence[str]) -> Rows:
    place = SourceLocation(split.name, columns.lines)
    groups = {name: list(map(_group, columns.values[name])) for name in slices}
    for name, own in groups.items():
        law = f"`{name}` must be valid Unicode"
        refuse(kind.task, law, own, [i for i, value in enumerate(own) if not is_text(value)], place)
    rows = replace(kind.read(columns, place), place=place, slices=groups)
    if split.is_file:
        blank, hint = kind.blank_rows(columns, rows), "remove the rows, or write their text"
        refuse(kind.task, "each row must have text", rows.texts, blank, place, hint)
    return rows


def _group(value: object) -> str:
    """Return the value of a slice column as text; the empty one where there is none."""
    if isinstance(value, float):  # pandas writes whole numbers so where some are missing
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _check_slices(task: Task, rows: Rows) -> None:
    """Refuse slice columns that hold too many different values."""
    many = {name: count for name, own in rows.slices.items() if (count := len(set(own))) > _MAX_VALUES}
    if many:
        got = " and ".join(f"`{name}` has {count:,}" for name, count in many.items())
        place = "" if rows.place is None else f" in {rows.place.name}"
        raise TaskDataError(
            f"Task {task.name}: a column of `slices` must have at most {_MAX_VALUES} different values in the test rows,"
            f" but {got}{place}.",
            hint="name columns of groups, such as a language or a source, or write a column that joins values",
        )


# ---- carving ---------------------------------------------------------------------------------------------------------
def _carve(task: Task, rows: dict[Split, Rows], place: str) -> dict[Split, Rows]:
    """Take the missing splits out of train: test first, then validation, a tenth of train each or `carved_rows`.

    Of the rest, `train_rows` stay.

    A row goes where a hash of its text says, so equal texts stay on one side, and neither the order of rows nor any
    library's generator plays a part. A text of more rows than a split should have goes to train, if there are others.
    """
    train = rows["train"]
    order: tuple[Split, ...] = ("test", "validation")
    missing = [name for name in order if name not in rows]
    if missing and len(train) < _FEWEST:
        raise TaskDataError(
            f"Task {task.name}: train must have at least {_FEWEST} rows where {' and '.join(missing)} are carved from "
            f"it, a tenth each, but {place} gives {len(train)}.",
            hint="give more rows, or the other splits as their own files",
        )
    keys = np.array(_content_keys(train))
    size = task.source.carved_rows or max(1, round(len(train) * _CARVED_SHARE))
    texts, of_row, counts = np.unique(keys, return_inverse=True, return_counts=True)
    dealt = np.argsort(counts > size, kind="stable")
    counted, first = np.cumsum(counts[dealt]), 0
    carved, place_of = dict(rows), np.full(len(texts), len(missing))
    for position, name in enumerate(missing):
        most = len(texts) - len(missing) + position  # each later split, and train, needs a text too
        end = min(max(int(np.searchsorted(counted, (position + 1) * size)), first) + 1, most)
        place_of[dealt[first:end]], first = position, end
        carved[name] = train.take(np.flatnonzero(place_of[of_row] == position))
    kept = np.flatnonzero(place_of[of_row] == len(missing))
    if task.source.train_rows is not None:
        kept = np.sort(kept[np.argsort(keys[kept], kind="stable")[: task.source.train_rows]])
    carved["train"] = train if len(kept) == len(train) else train.take(kept)
    for name in SPLITS:
        if not len(carved[name]):
            raise TaskDataError(
                f"Task {task.name}: the {name} split must have rows, but {place} (carved from it) gives none.",
                hint="check the file, or the splits of the data set: rows of one text stay together",
            )
    return {name: carved[name] for name in SPLITS}


def _content_keys(rows: Rows) -> list[str]:
    pairs = rows.pairs if rows.pairs is not None else [""] * len(rows)
    return [
        hashlib.blake2b(f"{_CARVE_SEED}\0{text}\0{pair}".encode(), digest_size=8).hexdigest()
        for text, pair in zip(rows.texts, pairs, strict=True)
    ]
