"""Read a task's splits with `datasets`: local files by extension, or a data set of the hub."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import TaskDataError, unknown_name
from loraxs_search.home import disk_faults
from loraxs_search.records import Split, Task

if TYPE_CHECKING:
    import datasets

_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_SAID_OF_NO_ROWS = ("corresponds to no data", "No columns to parse")  # by `datasets`, by pandas
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class RawSplit:
    """A split as stored: the columns that the task uses, and where they are from, for messages."""

    rows: datasets.Dataset
    place: str


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets` inside the block."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()


def read_splits(task: Task, cache_dir: Path) -> dict[Split, RawSplit]:
    """Read the splits that the task's source has; those it lacks are not in the result.

    Raises:
        TaskDataError: a file, split or column is missing, or a file cannot be parsed.
        HomeError: the cache cannot be written.
    """
    found = _local(task, cache_dir) if task.source.data_files else _hub(task, cache_dir)
    columns = list(dict.fromkeys(name for name in (task.text, task.text_pair, task.label) if name is not None))
    for split in found.values():
        _check_columns(task, split)
    return {name: RawSplit(split.rows.select_columns(columns), split.place) for name, split in found.items()}


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


def _local(task: Task, cache_dir: Path) -> dict[Split, RawSplit]:
    files = task.source.data_files
    found: dict[Split, RawSplit] = {}
    for split, name in _names(task, list(files), "data_files").items():
        path = Path(files[name])
        if not (path.is_file() and os.access(path, os.R_OK)):
            raise TaskDataError(
                f"Task {task.name}: the {split} split's file must be there and readable, but {path} is not.",
                hint="paths in `data_files` are relative to the file that declares the task",
            )
        found[split] = RawSplit(_read_file(task, path, cache_dir), str(path))
    return found


def _read_file(task: Task, path: Path, cache_dir: Path) -> datasets.Dataset:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSIONS]
    reader = _READERS.get(suffixes[-1] if suffixes else "")
    if reader is None:
        raise TaskDataError(
            f"Task {task.name}: a data file must end in one of {', '.join(_READERS)} (optionally compressed:"
            f" {', '.join(_COMPRESSIONS)}), but got {path}.",
            hint="convert it, or give it the ending of what it holds",
        )
    import datasets

    options: dict[str, Any] = {"cache_dir": str(cache_dir)}
    if reader == "csv":
        # "None" and "NA" are words, and a text of digits is a text.
        texts = {name: str for name in (task.text, task.text_pair) if name is not None}
        options |= {"sep": "\t" if suffixes[-1] == ".tsv" else ",", "keep_default_na": False, "converters": texts}
    # The reader itself, not `load_dataset`: that one reports each load of a local file to the hub.
    with _faults(task, str(path), cache_dir):
        return getattr(datasets.Dataset, f"from_{reader}")(str(path), **options)


def _hub(task: Task, cache_dir: Path) -> dict[Split, RawSplit]:
    import datasets

    source = task.source
    place = f"{source.hub}{f' ({source.config})' if source.config else ''}"
    with _faults(task, place, cache_dir):
        loaded = datasets.load_dataset(source.hub, source.config, revision=source.revision, cache_dir=str(cache_dir))
    names = _names(task, list(loaded), place)
    return {split: RawSplit(loaded[name], f"{place}, split {name}") for split, name in names.items()}


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
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            if isinstance(cause, StopIteration) or any(words in reason for words in _SAID_OF_NO_ROWS):
                raise TaskDataError(
                    f"Task {task.name}: a split must have rows, but {place} gives none.",
                    hint="check the file; a split that is left out of the space is carved from train",
                ) from error
            raise TaskDataError(
                f"Task {task.name}: {place} must be a readable data set, but: {reason}",
                hint="check the file, or the id and the network",
            ) from error


def _check_columns(task: Task, split: RawSplit) -> None:
    available = split.rows.column_names
    for role, name in (("text", task.text), ("text_pair", task.text_pair), ("label", task.label)):
        if name is not None and name not in available:
            law = unknown_name(f"columns.{role}", name, available)
            raise TaskDataError(
                f"Task {task.name}: {law} Place: {split.place}.", hint="name the data's own columns under `columns`"
            )
