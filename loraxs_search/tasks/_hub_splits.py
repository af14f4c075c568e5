"""Splits of the hub, or of a folder that is laid out as one, read with `datasets`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import TaskDataError
from loraxs_search.home import disk_faults
from loraxs_search.paths import user_path
from loraxs_search.records import Split, Task
from loraxs_search.tasks._columns import Columns
from loraxs_search.tasks._source import StoredSplit, check_columns, no_rows, split_names, wanted_columns

if TYPE_CHECKING:
    import datasets


def hub_splits(task: Task, cache_dir: Path) -> dict[Split, StoredSplit]:
    """Load the splits that a data set has; those it lacks are not in the result.

    Raises:
        TaskDataError: the data set or a split is missing.
        HomeError: the cache cannot be written.
    """
    import datasets

    source = task.source
    place = f"{source.hub}{f' ({source.config})' if source.config else ''}"
    with _faults(task, place, cache_dir), _no_bars():
        cache = _cache_for(str(source.hub), cache_dir)
        loaded = datasets.load_dataset(source.hub, source.config, revision=source.revision, cache_dir=str(cache))
    names = split_names(task, list(loaded), place)
    return {split: _HubSplit(loaded[name], f"{place}, split {name}") for split, name in names.items()}


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
        check_columns(task, Columns(available, values), self.name)
        feature = self.rows.features[wanted_columns(task)[-1]]
        names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
        return Columns(available, values, stored_names=names)


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
                raise no_rows(task, place) from error
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            raise TaskDataError(
                f"Task {task.name}: {place} must be a readable data set, but: {reason}",
                hint="check the id and the network, or name local files under `data_files`",
            ) from error
