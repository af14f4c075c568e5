"""Rows as they are read: stored columns, where they stand, what a text must be, and all faults in one error.

Rows that a caller gives in Python, too: those of files are read by `files.py`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TaskDataError, UsageError, meant, shortened
from loraxs_search.records.codec import Split
from loraxs_search.records.task import Task

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SEPARATOR = "|"  # between items that are given as one text: a question's options, a row's labels
_LISTED = 5  # different values that a message names


@dataclass(frozen=True)
class SourceLocation:
    """A file or a split of the hub, and where in it rows stand.

    Args:
        lines: The line of each row; None if rows have no lines.
        numbers: The number of each row, from 0; None if rows stand as they do in the source.
    """

    name: str
    lines: Sequence[int] | None = field(default=None, repr=False)
    numbers: Sequence[int] | None = field(default=None, repr=False)

    def row(self, index: int) -> str:
        """Return what people call a row: its line in the file, or its number from 1."""
        if self.lines is not None:
            return f"line {self.lines[index]}"
        return f"row {(index if self.numbers is None else self.numbers[index]) + 1}"

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> SourceLocation:
        """Return where these rows stand, in that order."""
        numbers = [int(i) for i in indices]
        if self.lines is not None:
            return SourceLocation(self.name, [self.lines[i] for i in numbers])
        return SourceLocation(self.name, None, numbers if self.numbers is None else [self.numbers[i] for i in numbers])

    def values(self, values: Sequence[Any], rows: Sequence[int]) -> str:
        """Return the different values of `rows` and where each is first: `'2' (line 5 and 3 more rows), 'q' (line 9)`.

        Five of them at most, then how many others there are.
        """
        by_value: dict[str, list[int]] = {}
        for row in rows:
            by_value.setdefault(shortened(values[row]), []).append(row)
        parts = [f"{value} ({self.first(where)})" for value, where in list(by_value.items())[:_LISTED]]
        others = len(by_value) - len(parts)
        return ", ".join(parts) + (f" and {others} other value{'s' * (others > 1)}" if others else "")

    def first(self, rows: Sequence[int]) -> str:
        """Return what people call the first of these rows, and how many others there are."""
        more = len(rows) - 1
        return self.row(rows[0]) + (f" and {more} more row{'s' * (more > 1)}" if more else "")


class MalformedFileError(Exception):
    """A file is not of the format that its ending names; the message leaves the file's name to the caller."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@dataclass(frozen=True)
class Columns:
    """Columns read from one file, or from one split of the hub.

    Args:
        available: Every column of the source.
        values: The requested columns that exist, each with one value a row.
        lines: The line where each row begins in its file; None if rows have no lines.
        stored_names: Label names that the data themselves give to their ids.
        encoding: Of a file of text, where it is not UTF-8.
        separator: Of separated values.
    """

    available: list[str]
    values: dict[str, list[Any]]
    lines: list[int] | None = None
    stored_names: list[str] | None = None
    encoding: str = ""
    separator: str = ""


def with_parents(wanted: Sequence[str]) -> list[str]:
    """Return the columns to read for `wanted`: with `choices.text` also `choices`, which may hold it; the last stays
    last."""
    parents = [name.partition(".")[0] for name in wanted if "." in name]
    return [*dict.fromkeys(parent for parent in parents if parent not in wanted), *wanted]


def with_parts(columns: Columns, wanted: Sequence[str]) -> Columns:
    """Add the parts that `wanted` names with a dot: `choices.text` is what `text` holds in each value of `choices`.

    A column whose own name has the dot stays as it is. A part that no row has is not added.
    """

    def part(value: Any, path: Sequence[str]) -> Any:  # of a list of objects, a list of what stands there in each
        for position, key in enumerate(path):
            if isinstance(value, Mapping):
                if (whole := ".".join(path[position:])) in value:  # a key with a dot
                    return value[whole]
                value = value.get(key)
            elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
                value = [item.get(key) for item in value]
            else:
                return None
        return value

    added = dict[str, list[Any]]()
    for name in wanted:
        parent, *path = name.split(".")
        if name not in columns.values and path and parent in columns.values:
            parts = [part(value, path) for value in columns.values[parent]]
            if any(it is not None for it in parts):
                added[name] = parts
    return replace(columns, available=[*columns.available, *added], values={**columns.values, **added})


class _JoinedDataError(TaskDataError):
    """Several faults of one task's data; the message lists all of them."""

    def __init__(self, task: Task, errors: Sequence[TaskDataError]) -> None:
        messages = [error.message.removeprefix(f"Task {task.name}: ") for error in errors]
        hints = dict.fromkeys(error.hint for error in errors if error.hint)
        super().__init__(
            "\n".join([f"Task {task.name} has {len(messages)} faults:", *messages]), hint="; ".join(hints) or None
        )
        self.errors = tuple(errors)


@contextlib.contextmanager
def collected(errors: list[TaskDataError]) -> Iterator[None]:
    """Put the faults that the block raises into `errors`, and continue behind it."""
    try:
        yield
    except _JoinedDataError as error:
        errors += error.errors
    except TaskDataError as error:
        errors.append(error)


def raise_joined(task: Task, errors: Sequence[TaskDataError]) -> None:
    """Raise one error that lists all of them, if there are any."""
    if errors:
        raise errors[0] if len(errors) == 1 else _JoinedDataError(task, errors)


def refuse(
    task: Task,
    law: str,
    values: Sequence[Any],
    rows: Sequence[int],
    place: SourceLocation,
    hint: str = "correct or remove the rows",
) -> None:
    """Refuse the rows whose values break a law, if there are any; every different value is named.

    Raises:
        TaskDataError: there are.
    """
    if rows:
        raise TaskDataError(f"Task {task.name}: {law}, but {place.name} has {place.values(values, rows)}.", hint=hint)


DATA_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".conll")  # of data files, before that of a compression
# What people call a column with texts.
TEXT_NAMES = (
    *("text", "sentence", "review", "content", "body", "comment", "message", "document", "question", "prompt"),
    *("instruction", "input", "title", "description", "utterance", "query", "tweet", "abstract"),
)


@dataclass(frozen=True)
class Rows:
    """Rows of one split, or questions that are no part of the data.

    Texts say which row is which: rows of equal texts stay in one split, and are counted where splits share them.

    Args:
        texts: What an adapter is asked.
        pairs: A second text of each row; None if the task has none.
        labels: What an answer is compared with, shape (N,): int64 ids, float32 numbers, or texts (dtype
            object: in one of fixed width, a single long text would take its length for every row).
        extras: What else the kind needs of its columns, by its own name: one value a row, each a text or a list
            of texts.
        place: Where the rows are from, for messages; None of rows that are in no source. No part of their content.
        slices: What each row has in the task's slice columns, by column; only for test rows. Fingerprints leave
            them out: with and without slices, a task has the same rows.
        teacher: Probabilities of the labels by the task's teacher, (N, labels), float32, NaN in rows that it does not
            answer; None without a teacher.
        labelled: Which rows have a label, (N,); the others, only train rows, have the teacher's likeliest in `labels`.
            None if all have one.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: npt.NDArray[Any]
    extras: Mapping[str, list[Any]] = field(default_factory=dict)
    place: SourceLocation | None = field(default=None, compare=False)
    slices: Mapping[str, list[str]] = field(default_factory=dict, compare=False)
    teacher: npt.NDArray[np.float32] | None = None
    labelled: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: npt.NDArray[np.int64] | Sequence[int]) -> Rows:
        """Return the rows of `indices`, in that order."""
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        extras = {name: [column[i] for i in indices] for name, column in self.extras.items()}
        slices = {name: [column[i] for i in indices] for name, column in self.slices.items()}
        place = None if self.place is None else self.place.take(indices)
        teacher = None if self.teacher is None else self.teacher[indices]
        labelled = None if self.labelled is None else self.labelled[indices]
        texts = [self.texts[i] for i in indices]
        return Rows(texts, pairs, self.labels[indices], extras, place, slices, teacher, labelled)


def blank_rows(columns: Sequence[Sequence[Any]]) -> list[int]:
    """Return the rows in which each of these columns is empty or white space."""
    return [row for row, values in enumerate(zip(*columns, strict=True)) if not any(str(it).strip() for it in values)]


def composed(text: str) -> str:
    """Return a text in the form in which those are equal that look alike: an accent may be its own character."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def is_text(value: Any) -> bool:
    """Whether a value is a text that a tokenizer takes."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half of a surrogate pair: neither a tokenizer nor a file takes it
        return False


def items_of(value: Any) -> Any:
    """Return the list that a text holds, as JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # the latter at a text of many `[`
            return value
    return value


# ---- rows that a caller gives in Python ------------------------------------------------------------------------------
def question_rows(texts: Any, columns: Sequence[str] = ()) -> list[tuple[Any, ...]]:
    """Return the rows of a request, each with its texts: a row is a text, a tuple of several, or a dict by column.

    What is in a row is left to the task's kind, which knows what it should be.

    Args:
        texts: A list of rows, one text, or a DataFrame of pandas.
        columns: What the task reads of a DataFrame or a dict; other columns do not matter.
    Raises:
        UsageError: it is none of these, or lacks a column.
    """
    if is_frame(texts):  # as files have values: None for a missing one, lists instead of arrays
        names = list(texts.columns)
        for name in columns:
            if names.count(name) != 1:
                has = "has it twice" if name in names else f"has: {', '.join(map(str, names))}"
                near = "" if name in names else meant(name, [str(other) for other in names])
                way = f"rename the column {near} to {name}" if near else "give the columns that the task was trained on"
                raise UsageError(f"`texts` must have the column {name}, which the task reads, but {has}.", hint=way)
        chosen = texts[list(columns)].astype(object)
        frame_rows = chosen.where(chosen.notna(), None).itertuples(index=False, name=None)
        return [tuple(it.tolist() if hasattr(it, "tolist") else it for it in row) for row in frame_rows]
    rows = list[tuple[Any, ...]]()
    for row in listed(texts, "texts"):
        if not isinstance(row, Mapping) or not columns:
            rows.append(row if isinstance(row, tuple) else (row,))
            continue
        if missing := [name for name in columns if name not in row]:
            raise UsageError(
                f"`texts` must have the column {missing[0]} in each row, but one has: {', '.join(map(str, row))}.",
                hint="give the columns that the task was trained on",
            )
        rows.append(tuple(row[name] for name in columns))
    return rows


def is_frame(texts: Any) -> bool:
    """Whether this is a DataFrame of pandas, which is not imported for that."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(texts, pandas.DataFrame)


def listed(texts: Any, name: str) -> list[Any]:
    """Return what a list holds; of one text, a list of one.

    Args:
        name: What messages call it.
    Raises:
        UsageError: it is neither.
    """
    if isinstance(texts, str):
        return [texts]
    is_list = hasattr(texts, "__len__") and hasattr(texts, "__getitem__") and not isinstance(texts, bytes | Mapping)
    if not is_list or hasattr(texts, "columns"):  # a table lists the names of its columns
        raise UsageError(
            f"`{name}` must be a text or a list of texts, but got {type(texts).__name__}.",
            hint='give ["one text", "another"], a pandas DataFrame, or a row of several texts as a tuple',
        )
    return list(texts)
