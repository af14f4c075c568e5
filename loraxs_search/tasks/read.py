"""A task's rows in memory: read, validated, carved into splits, with a fingerprint of their content.

The checked rows of a file are cached by its content: it is parsed once, whatever its name and time. A table in the
cache is a file that is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loraxs_search.errors import TaskDataError
from loraxs_search.home import ensure_dir, home, mark_used, write_atomic
from loraxs_search.records.codec import to_json
from loraxs_search.records.literals import Split
from loraxs_search.records.task import Task
from loraxs_search.tasks.kinds import TaskKind
from loraxs_search.tasks.rows import Columns, Rows, SourceLocation, collected, is_text, raise_joined, refuse
from loraxs_search.tasks.splits import SPLITS, StoredSplit, find_splits, wanted_columns


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


_EXTRA, _SLICE = "extra.", "slice."  # before the names of columns that a kind adds, and of those of slices
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
        for start in (_EXTRA, _SLICE)
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
    extras |= {f"{_SLICE}{name}": pa.array(values, pa.large_string()) for name, values in rows.slices.items()}
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
