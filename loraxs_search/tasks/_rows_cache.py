"""Checked rows of a data file, kept by its content: a file is parsed once, whatever its name and time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loraxs_search.home import ensure_dir, home
from loraxs_search.records import Task, to_json
from loraxs_search.tasks._arrow import load_table, numbers_of, store_table
from loraxs_search.tasks._source_location import SourceLocation
from loraxs_search.tasks.rows import Rows

_EXTRA = "extra."  # before the names of columns that a kind adds
_VERSION = "6"  # raised whenever the same bytes are read as other rows


def rows_cache(cache_dir: Path | None) -> Path:
    """Return the folder of cached rows, which is there then; None means home()/"datasets"."""
    return ensure_dir(cache_dir if cache_dir is not None else home() / "datasets")


def rows_path(task: Task, digest: str, cache_dir: Path, spare: frozenset[str], most: int | None) -> Path:
    """Return where the rows of a file are kept: all that decides them is in the name.

    Args:
        spare: Columns that may be missing.
        most: Characters of the longest row; None where all rows are read.
    """
    parts = (_VERSION, digest, task.text, task.text_pair, task.label, task.kind, *task.labels)
    if task.settings:
        parts += (to_json(task.settings),)
    if most is not None:
        parts += (f"max_characters={most}",)
    if spare:
        parts += (f"without {sorted(spare)}",)
    return cache_dir / "rows" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:40]}.arrow"


def load_rows(path: Path, source: str) -> Rows | None:
    """Return rows, as those of a file of this name; None when they are not there."""
    table = load_table(path)
    if table is None:
        return None
    columns = {name: table.column(name).to_pylist() for name in table.column_names if name != "label"}
    extras = {name.removeprefix(_EXTRA): values for name, values in columns.items() if name.startswith(_EXTRA)}
    labels, place = _labels(table.column("label").combine_chunks()), SourceLocation(source, columns.get("line"))
    return Rows(columns["text"], columns.get("pair"), labels, extras, place)


def store_rows(path: Path, rows: Rows) -> None:
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
    ensure_dir(path.parent)
    store_table(path, pa.table({**columns, "label": pa.array(rows.labels), **extras}))


def _labels(column: pa.Array) -> npt.NDArray[Any]:
    return np.array(column.to_pylist(), object) if pa.types.is_string(column.type) else numbers_of(column).copy()
