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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loraxs_search.errors import TaskDataError, first_line, unknown_name
from loraxs_search.home import disk_faults, ensure_dir, file_sha256, home, mark_used, user_path, write_atomic
from loraxs_search.records.codec import to_json
from loraxs_search.records.literals import Split
from loraxs_search.records.task import Task
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


def _wanted_columns(task: Task, slices: Sequence[str] = ()) -> list[str]:
    """Return the columns that a task names, and `slices`, each once; the one that may have label names is the last."""
    wanted = list(dict.fromkeys(kind_of(task).columns.values()))
    return [*(name for name in slices if name not in wanted), *wanted]


# ---- stored splits ---------------------------------------------------------------------------------------------------
class _FileSplit:
    """A split in the user's own file, which they can correct; its rows are cached by its digest."""

    def __init__(self, task: Task, split: Split, name: str) -> None:
        try:
            self.path = user_path(name)
            ending = file_format(self.path)
            if not self.path.is_file():
                raise ValueError("there is none")
            self.content = self.path.read_bytes()
        except MalformedFileError as error:
            raise TaskDataError(
                f"Task {task.name}: a data file {error.message}, but got {self.path}.", hint=error.hint
            ) from None
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise TaskDataError(
                f"Task {task.name}: the {split} split must be a readable file, but {name[:300]} is not: {reason}.",
                hint="paths in `data_files` are relative to the file that declares the task",
            ) from error
        self.name = str(self.path)
        self.digest = f"{ending} {self.path.suffix.lower()} {hashlib.sha256(self.content).hexdigest()}"
        self.label_names: list[str] | None = None
        with contextlib.suppress(MalformedFileError):  # said when it is read
            self.label_names = label_names(self.path, _wanted_columns(task)[-1], self.content)

    def read(self, task: Task, spare: frozenset[str], slices: Sequence[str]) -> Columns:
        wanted = _wanted_columns(task, slices)
        warn_of_encoding(self.path, self.content)
        try:
            columns = read_columns(self.path, self.content, wanted)
            if absent := spare.difference(columns.available):  # of a table that lacks a column, no row is read
                columns = read_columns(self.path, self.content, [name for name in wanted if name not in absent])
        except MalformedFileError as error:
            raise TaskDataError(f"Task {task.name}: {self.path} {error.message}.", hint=error.hint) from error
        return columns


class _HubSplit:
    """A split that `datasets` has read. It has no digest: `datasets` has its own cache, by commit.

    Args:
        written: Its name as a space has it, maybe with a slice: `train[:1000]`.
        rename: Its names to the task's.
    """

    digest = None

    def __init__(
        self,
        task: Task,
        rows: datasets.Dataset,
        place: str,
        written: str,
        rename: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        import datasets

        match = _SLICE.fullmatch(written)
        self.name = f"{place}, split {match['split'] if match else written}"
        if match and match["first"] is not None:
            first, end = int(match["first"] or 0), int(match["end"] or len(rows))
            rows = rows.select(range(min(first, len(rows)), min(end, len(rows))))
        self.rows = rows.rename_columns({a: b for a, b in rename.items() if a in rows.column_names})
        feature = self.rows.features.get(_wanted_columns(task)[-1])
        feature = getattr(feature, "feature", feature)  # of a list, that of its items
        self.label_names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None

    def read(self, task: Task, spare: frozenset[str], slices: Sequence[str]) -> Columns:
        wanted, available = _wanted_columns(task, slices), list(self.rows.column_names)
        values = self.rows.select_columns([name for name in with_parents(wanted) if name in available])[:]
        return replace(with_parts(Columns(available, values), wanted), stored_names=self.label_names)


def _find_splits(task: Task, cache_dir: Path) -> dict[Split, _FileSplit | _HubSplit]:
    """Find a task's splits; those that it lacks are not in the result.

    Raises:
        TaskDataError: a file, a data set or a split is missing, or two splits number their labels differently.
        HomeError: the cache cannot be written.
    """
    source, who = task.source, f"Task {task.name}: "
    splits: dict[Split, _FileSplit | _HubSplit] = {}
    if source.data_files:
        place, available = "data_files", list[str](source.data_files)
    else:
        place = _place(source.hub, source.config)
        loaded = load_splits(source.hub, source.config, source.revision, cache_dir, who)
        available = list(loaded)
    declared: dict[Split, str] = dict(source.splits) or {name: name for name in SPLITS if name in available}
    declared.setdefault("train", "train")
    errors: list[TaskDataError] = []
    for split, written in declared.items():
        name = written if source.data_files else _split_name(written)
        if name not in available:
            raise TaskDataError(
                f"{who}{unknown_name(f'splits.{split}', name, available)} Place: {place}.",
                hint="map the source's names under `splits`; only train is required, the others are carved from it",
            )
        with collected(errors):
            if source.data_files:
                splits[split] = _FileSplit(task, split, source.data_files[cast("Split", name)])
            else:
                splits[split] = _HubSplit(task, loaded[name], place, written)
    raise_joined(task, errors)
    for split, other in source.elsewhere.items():
        place, name = _place(other.hub, other.config), _split_name(other.split)
        loaded = load_splits(other.hub, other.config, other.revision, cache_dir, who)
        if name not in loaded:
            raise TaskDataError(
                f"{who}{unknown_name(f'data.{split}.split', name, list(loaded))} Place: {place}.",
                hint="name a split that the data set has",
            )
        splits[split] = _HubSplit(task, loaded[name], place, other.split, other.rename)
    # No id may have different names in two splits, unless all names are the task's, which then decide.
    known = {composed(name).casefold() for name in task.labels}
    named = [(it, names) for it in splits.values() if task.labels and (names := it.label_names) is not None]
    for it, names in named[1:]:
        first, others = named[0]
        differing = next((id_ for id_, pair in enumerate(zip(others, names, strict=False)) if pair[0] != pair[1]), None)
        if differing is not None and not {composed(name).casefold() for name in (*others, *names)} <= known:
            raise TaskDataError(
                f"{who}an id must have one name in all splits, but {differing} is {others[differing]!r} in"
                f" {first.name} and {names[differing]!r} in {it.name}.",
                hint="give the task's `labels` the names of the data, which then decide, or number the splits alike",
            )
    return splits


def _no_rows(who: str, place: str) -> TaskDataError:
    return TaskDataError(
        f"{who}a split must have rows, but {place} gives none.",
        hint="check the file; a split that is left out of the space is carved from train",
    )


_CONFIGS = re.compile(r"pick one among the available configs: \[(?P<names>[^\]]*)\]")
_SLICE = re.compile(r"(?P<split>[^\[\]]+)(\[(?P<first>\d*):(?P<end>\d*)\])?")  # `train`, `train[:1000]`


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

    place, hidden = _place(hub, config), datasets.are_progress_bars_disabled()
    with disk_faults(cache_dir):
        try:
            datasets.disable_progress_bars()
            cache, files = _cache_for(str(hub), cache_dir), dict[str, list[str]]()
            loaded = datasets.load_dataset(hub, config, revision=revision, cache_dir=str(cache))
            if cache != cache_dir:  # a folder of this machine
                files = datasets.load_dataset_builder(hub, config, cache_dir=str(cache)).config.data_files or {}
        except Exception as error:
            # Parsers, decompressors, file systems and the hub's client each have their own family of errors.
            cause = error.__cause__ or error  # a full disk hides there
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise cause from error
            if isinstance(cause, StopIteration) or "corresponds to no data" in str(cause):
                raise _no_rows(who, place) from error
            if configs := _CONFIGS.search(str(cause)):
                names = configs["names"].replace("'", "")
                raise TaskDataError(
                    f"{who}{place} must be read in one of its configurations: {names}.",
                    hint="name it: `data.config` in a space, --config for `init`",
                ) from error
            raise TaskDataError(
                f"{who}{place} must be a readable data set, but: {first_line(cause)}",
                hint="check the id and the network, or name local files under `data_files`",
            ) from error
        finally:
            if not hidden:
                datasets.enable_progress_bars()
    # `datasets` reads all files of a folder by the label names of the first one.
    features = next(iter(loaded.values())).features
    named = {name: it.names for name, it in features.items() if isinstance(it, datasets.ClassLabel)}
    for file in (Path(file) for own in files.values() for file in own if Path(file).suffix == ".parquet"):
        for column, names in named.items():
            pairs = zip(names, label_names(file, column) or (), strict=False)
            if differing := [pair for pair in pairs if pair[0] != pair[1]]:
                raise TaskDataError(
                    f"{who}an id of {column} must have one name in all files, but the one of {differing[0][0]!r} is"
                    f" {differing[0][1]!r} in {file}.",
                    hint="number the labels of all files alike, or name the files under `data_files`",
                )
    return loaded


def _place(hub: str | None, config: str | None) -> str:
    return f"{hub}{f' ({config})' if config else ''}"


def _split_name(written: str) -> str:
    match = _SLICE.fullmatch(written)
    return match["split"] if match else written


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
    column, place = table.column("label").combine_chunks(), SourceLocation(source, columns.get("line"))
    is_text = pa.types.is_string(column.type)
    labels = np.array(column.to_pylist(), object) if is_text else numbers_of(column).copy()
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
    stored = _find_splits(task, cache_dir)
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
    slices = carved["test"].slices
    if many := {name: count for name, own in slices.items() if (count := len(set(own))) > _MAX_VALUES}:
        got = " and ".join(f"`{name}` has {count:,}" for name, count in many.items())
        place = carved["test"].place
        raise TaskDataError(
            f"Task {task.name}: a column of `slices` must have at most {_MAX_VALUES} different values in the test rows,"
            f" but {got}{f' in {place.name}' if place else ''}.",
            hint="name columns of groups, such as a language or a source, or write a column that joins values",
        )
    return carved


def fingerprint(rows: dict[Split, Rows], splits: Sequence[Split] = SPLITS) -> str:
    """Return the sha256 of these splits' texts and labels: the same on every machine, whatever the files are called."""
    digest = hashlib.sha256()

    def add(column: Sequence[str]) -> None:
        encoded = [text.encode() for text in column]
        lengths = np.fromiter(map(len, encoded), dtype="<i8", count=len(encoded))
        digest.update(hashlib.sha256(lengths.tobytes() + b"".join(encoded)).digest())

    for name in splits:
        split = rows[name]
        digest.update(f"{name} {len(split)}\n".encode())
        add(split.texts)
        add(split.pairs or [])
        kind = split.labels.dtype.kind
        if kind in "UO":
            add(split.labels.tolist())
        else:
            digest.update(split.labels.astype("<i8" if kind == "i" else "<f4").tobytes())
        for extra, values in sorted(split.extras.items()):
            add([extra, *(value if isinstance(value, str) else json.dumps(value) for value in values)])
    return digest.hexdigest()


def fixed_subset(n: int, limit: int | None) -> npt.NDArray[np.int64]:
    """Return at most `limit` of n row numbers, ascending: always the same ones, drawn by a hash of the number."""
    if limit is None or limit >= n:
        return np.arange(n, dtype=np.int64)
    keys = [hashlib.blake2b(str(row).encode(), digest_size=8).digest() for row in range(n)]
    return np.array(sorted(sorted(range(n), key=keys.__getitem__)[:limit]), dtype=np.int64)


# ---- reading ---------------------------------------------------------------------------------------------------------
def _read(
    kind: TaskKind, name: Split, split: _FileSplit | _HubSplit, cache_dir: Path, slices: Sequence[str]
) -> Rows | None:
    """Return the rows of a split, from the cache when they are there; None of one whose labels are hidden."""
    task, wanted = kind.task, kind.columns
    spare = kind.spare_in_test if name == "test" else frozenset[str]()
    most = task.source.max_characters if name == "train" else None
    path = None
    if split.digest is not None:  # all that decides the rows is in the name of the file that keeps them
        parts = (_VERSION, split.digest, task.text, task.text_pair, task.label, task.kind, *task.labels)
        parts += (to_json(task.settings), str(most), *sorted(spare), "slices", *slices)
        path = cache_dir / "rows" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:40]}.arrow"
        if (known := _load_rows(path, split.name)) is not None:
            return known
    columns = split.read(task, spare, slices)
    if not columns.available:
        raise _no_rows(f"Task {task.name}: ", split.name)
    named = [*wanted.items(), *(("slices", column) for column in slices)]
    if missing := [(key, column) for key, column in named if column not in {*columns.available, *spare}]:
        laws = " ".join(unknown_name(key, column, columns.available) for key, column in missing)
        section = missing[0][0].partition(".")[0]
        raise TaskDataError(
            f"Task {task.name}: {laws} Place: {split.name}.", hint=f"name the data's own columns under `{section}`"
        )
    if not columns.values[list(wanted.values())[-1]]:
        raise _no_rows(f"Task {task.name}: ", split.name)
    place = SourceLocation(split.name, columns.lines)
    if name == "test" and kind.hides_answers(columns):
        if split.digest is not None:
            column = _wanted_columns(task)[-1]
            values = columns.values.get(column, [])
            hint = "write the answers, or leave the file out: then a tenth of train is set aside as test rows"
            refuse(task, f"`{column}` of test rows must have answers", values, range(len(values)), place, hint)
        return None
    if most is not None:  # rows of more characters, in all columns that the task reads, are left out
        read = [columns.values[name] for name in _wanted_columns(task)]
        kept = [i for i, row in enumerate(zip(*read, strict=True)) if sum(map(_characters, row)) <= most]
        if not kept:
            raise TaskDataError(
                f"Task {task.name}: some training row must have at most max_characters={most} characters, but none"
                " has.",
                hint="raise `max_characters`",
            )
        short = {name: [column[i] for i in kept] for name, column in columns.values.items()}
        lines = None if columns.lines is None else [columns.lines[i] for i in kept]
        columns, place = replace(columns, lines=lines, values=short), SourceLocation(split.name, lines)
    groups = {name: list(map(_group, columns.values[name])) for name in slices}
    for column, own in groups.items():
        law = f"`{column}` must be valid Unicode"
        refuse(task, law, own, [i for i, value in enumerate(own) if not is_text(value)], place)
    rows = replace(kind.read(columns, place), place=place, slices=groups)
    if split.digest is not None:
        blank, hint = kind.blank_rows(columns, rows), "remove the rows, or write their text"
        refuse(task, "each row must have text", rows.texts, blank, place, hint)
    if path is not None:
        _store_rows(path, rows)
    return rows


def _characters(value: object) -> int:
    return sum(map(_characters, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 0


def _group(value: object) -> str:
    """Return the value of a slice column as text; the empty one where there is none."""
    if isinstance(value, float):  # pandas writes whole numbers so where some are missing
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


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
    pairs = train.pairs if train.pairs is not None else [""] * len(train)
    contents = (f"{_CARVE_SEED}\0{text}\0{pair}".encode() for text, pair in zip(train.texts, pairs, strict=True))
    keys = np.array([hashlib.blake2b(content, digest_size=8).hexdigest() for content in contents])
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
