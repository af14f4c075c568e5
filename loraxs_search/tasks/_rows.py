"""A task's rows in memory: validated, carved into splits, with a fingerprint of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TaskDataError
from loraxs_search.records import Split, Task
from loraxs_search.tasks._source import RawSplit
from loraxs_search.tasks.kinds import TaskHead

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_CARVED_SHARE = 0.1
_CARVE_SEED = "loraxs-search carve 1"
_HIDDEN = -1  # what the hub stores where a benchmark keeps its labels to itself


@dataclass(frozen=True)
class Rows:
    """Rows of one split: `texts`, `pairs` (None without a second text), and `labels` (N,)."""

    texts: list[str]
    pairs: list[str] | None
    labels: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: npt.NDArray[np.int64]) -> Rows:
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        return Rows([self.texts[i] for i in indices], pairs, self.labels[indices])


def read_rows(task: Task, head: TaskHead, raw: dict[Split, RawSplit]) -> dict[Split, Rows]:
    """Validate the splits that there are and carve those that there are not.

    Raises:
        TaskDataError: texts or labels do not fit the declaration, or a split is empty.
    """
    rows = {name: _validated(task, head, split) for name, split in raw.items() if not _hidden(task, name, split)}
    rows = _carve(rows)
    for name in SPLITS:
        if not len(rows[name]):
            place = raw[name].place if name in raw else f"{raw['train'].place} (carved from it)"
            raise TaskDataError(
                f"Task {task.name}: the {name} split must have rows, but {place} gives none.",
                hint="check the file, or the splits of the data set",
            )
    return rows


def fingerprint(rows: dict[Split, Rows], splits: Sequence[Split] = SPLITS) -> str:
    """Return the sha256 of these splits' texts and labels: the same on every machine, whatever the files are called."""
    digest = hashlib.sha256()
    for name in splits:
        split = rows[name]
        digest.update(f"{name} {len(split)}\n".encode())
        for column in (split.texts, split.pairs or []):
            digest.update(_column_digest(column))
        kind = "<i8" if split.labels.dtype.kind == "i" else "<f4"
        digest.update(split.labels.astype(kind).tobytes())
    return digest.hexdigest()


def _column_digest(column: list[str]) -> bytes:
    encoded = [text.encode("utf-8", "surrogatepass") for text in column]
    lengths = np.fromiter(map(len, encoded), dtype="<i8", count=len(encoded))
    return hashlib.sha256(lengths.tobytes() + b"".join(encoded)).digest()


def fixed_subset(n: int, limit: int | None) -> npt.NDArray[np.int64]:
    """Return at most `limit` of n row numbers, ascending: the same ones always, drawn by a hash of the number."""
    if limit is None or limit >= n:
        return np.arange(n, dtype=np.int64)
    keys = [hashlib.blake2b(str(row).encode(), digest_size=8).digest() for row in range(n)]
    return np.array(sorted(sorted(range(n), key=keys.__getitem__)[:limit]), dtype=np.int64)


def _hidden(task: Task, name: Split, split: RawSplit) -> bool:
    """Say whether a benchmark keeps the labels of its test split to itself."""
    if name != "test" or not len(split.rows):
        return False
    return all(value == _HIDDEN for value in split.rows.select_columns(task.label)[:][task.label])


def _validated(task: Task, head: TaskHead, split: RawSplit) -> Rows:
    import datasets  # late: predicting needs the tokeniser of a task, not its rows

    columns: dict[str, list[Any]] = split.rows[:]
    feature = split.rows.features[task.label]
    stored_names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    return Rows(
        texts=_texts(columns[task.text], task, task.text, split.place),
        pairs=None if task.text_pair is None else _texts(columns[task.text_pair], task, task.text_pair, split.place),
        labels=head.read_labels(columns[task.label], task, split.place, stored_names),
    )


def _texts(values: list[Any], task: Task, column: str, place: str) -> list[str]:
    faults = [row for row, value in enumerate(values) if not isinstance(value, str)]
    if faults:
        more = f" (and {len(faults) - 1} more rows)" if len(faults) > 1 else ""
        raise TaskDataError(
            f"Task {task.name}: `{column}` must be text, but row {faults[0] + 1} of {place} has"
            f" {values[faults[0]]!r}{more}.",
            hint="correct or remove the rows",
        )
    return values


def _carve(rows: dict[Split, Rows]) -> dict[Split, Rows]:
    """Take the missing splits out of train: test first, then validation, a tenth of train each.

    A row goes where a hash of its text says, so equal texts stay on one side, and neither the order of rows nor any
    library's generator plays a part.
    """
    train = rows["train"]
    order: tuple[Split, ...] = ("test", "validation")
    lacking = [name for name in order if name not in rows]
    if not lacking or not len(train):
        return {**{name: train.take(np.arange(0)) for name in SPLITS}, **rows}
    keys = np.array(_content_keys(train))
    size = max(1, round(len(train) * _CARVED_SHARE))
    ranked = np.sort(keys)
    carved, low = dict(rows), ""
    for position, name in enumerate(lacking, start=1):
        high = str(ranked[min(position * size, len(ranked)) - 1])
        carved[name] = train.take(np.flatnonzero((keys > low) & (keys <= high)))
        low = high
    carved["train"] = train.take(np.flatnonzero(keys > low))
    return carved


def _content_keys(rows: Rows) -> list[str]:
    pairs = rows.pairs if rows.pairs is not None else [""] * len(rows)
    return [
        hashlib.blake2b(f"{_CARVE_SEED}\0{text}\0{pair}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        for text, pair in zip(rows.texts, pairs, strict=True)
    ]
