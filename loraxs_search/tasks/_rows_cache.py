"""Checked rows of a data file, kept by its content: a file is parsed once, whatever its name and time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from loraxs_search.home import ensure_dir
from loraxs_search.records import Task
from loraxs_search.tasks._arrow import load_table, numbers_of, store_table

_VERSION = "1"  # raised whenever the same bytes are read as other rows

Known = tuple[list[str], list[str] | None, npt.NDArray[Any]]


def rows_path(task: Task, digest: str, cache_dir: Path) -> Path:
    """Return where the rows of a file are kept: all that decides them is in the name."""
    parts = (_VERSION, digest, task.text, task.text_pair, task.label, task.kind, *task.labels)
    return cache_dir / "rows" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:40]}.arrow"


def load_rows(path: Path) -> Known | None:
    """Return texts, pairs and labels (N,); None when they are not there."""
    table = load_table(path)
    if table is None:
        return None
    pairs = table.column("pair").to_pylist() if "pair" in table.column_names else None
    return table.column("text").to_pylist(), pairs, numbers_of(table.column("label").combine_chunks()).copy()


def store_rows(path: Path, texts: list[str], pairs: list[str] | None, labels: npt.NDArray[Any]) -> None:
    """Keep rows.

    Raises:
        HomeError: the cache cannot be written.
    """
    columns: dict[str, pa.Array] = {"text": pa.array(texts, pa.large_string())}
    if pairs is not None:
        columns["pair"] = pa.array(pairs, pa.large_string())
    ensure_dir(path.parent)
    store_table(path, pa.table({**columns, "label": pa.array(labels)}))
