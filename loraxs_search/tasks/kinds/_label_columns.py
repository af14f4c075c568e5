"""Stored label columns as ids or numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TaskDataError, meant, shortened
from loraxs_search.records.literals import Split
from loraxs_search.records.task import Task
from loraxs_search.tasks.rows import SourceLocation, composed, refuse

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)", re.ASCII)
_LISTED, _WARNED = 20, 5  # labels that a message names, and a warning
_MEANT = 5  # values whose nearest label is named
_HIDDEN = {"-1", "-1.0", "", "None", "nan"}  # what benchmarks store where they hide their labels
_PADDED = re.compile(r"\s*[-+]?0\d")  # a name, such as a postcode
_ROUNDED = 1e-3  # share of the labels' spread that rounding may take
_MOST = float(np.finfo(np.float32).max)


def are_hidden(values: Sequence[Any], names: Sequence[str] = ()) -> bool:
    """Whether a column has no label at all, as where a benchmark keeps its test labels; a task's own names are some."""
    hidden = _HIDDEN - set(names)
    if any(_number(name) == -1 for name in names):
        hidden -= {"-1", "-1.0"}
    return all(str(value).strip() in hidden for value in values)


def class_ids(
    values: Sequence[Any], task: Task, place: SourceLocation, stored_names: Sequence[str] | None = None
) -> npt.NDArray[np.int64]:
    """Return label ids, shape (N,), from label names or ids.

    A label is a name of the task, letter for letter. A number is the id of a label, unless some name is itself a
    number: then numbers are names, and never ids. `1.0` is the number 1, in a file too; `007` is only a name. A
    boolean is the name `true` or `false`, else 1 or 0.

    Args:
        stored_names: Label names that the data themselves give to their ids, which are then ids whatever the task's
            names are. Where some of them are the task's, in another place there, names decide; names that are numbers
            say nothing. Case does not matter.
    Raises:
        TaskDataError: a label is missing or outside the set; every different one is named. Or no stored name is the
            task's.
    """
    ids = {composed(name): index for index, name in enumerate(task.labels)}
    numeric = _numeric_names(ids)
    listed, others = list(task.labels[:_LISTED]), len(task.labels) - _LISTED
    allowed = f"one of {', '.join(listed)}{f' and {others} more' if others > 0 else ''}"
    if stored_names is not None:
        numeric = _meant_by_ids(stored_names, ids)
        if not numeric:
            raise TaskDataError(
                f"Task {task.name}: `labels` must name the labels that the data name {', '.join(stored_names)}, but"
                f" are {', '.join(task.labels)} ({place.name}).",
                hint="write the names of the data into `labels`; their order is free",
            )
        allowed += f" (the data name their ids {', '.join(stored_names[:_LISTED])})"
    elif not any(_number(name) is not None for name in ids):
        numeric = {index: index for index in range(len(ids))}
        allowed += f" or an id in 0..{len(ids) - 1}"

    def read(value: Any) -> int | None:
        text = composed(value.strip()) if isinstance(value, str) else str(value)
        if text in ids and isinstance(value, str):
            return ids[text]
        word = text.lower()
        if word in ("true", "false"):
            named = {name.lower(): index for name, index in ids.items()}
            return named[word] if word in named else numeric.get(int(word == "true"))
        number = None if _PADDED.match(text) else _number(value)
        return None if number is None else numeric.get(number)

    return _read(values, read, np.int64, task, place, allowed, names=task.labels)


def _meant_by_ids(stored_names: Sequence[str], ids: Mapping[str, int]) -> dict[int | float, int]:
    """Return the task's id of each id of the data, which give names to theirs; nothing if no name is the task's."""
    folded = {name.casefold(): index for name, index in ids.items()}
    known = folded if len(folded) == len(ids) else {}
    meant = {id_: ids.get(name, known.get(name.casefold())) for id_, name in enumerate(map(composed, stored_names))}
    found = [(id_, index) for id_, index in meant.items() if index is not None]
    if not found and not all(_number(name) is not None for name in stored_names):
        return {}
    if all(index == id_ for id_, index in found):
        return {index: index for index in range(len(ids))}
    return dict(found)


def numbers(values: Sequence[Any], task: Task, place: SourceLocation) -> npt.NDArray[np.float32]:
    """Return regression targets, shape (N,).

    Raises:
        TaskDataError: a label is missing, not a number, or not finite in float32; every different one is named. Or
            float32 cannot tell labels apart, which are large and close together.
    """

    def read(value: Any) -> float | None:
        number = finite_number(value)
        return number if number is not None and abs(number) <= _MOST else None

    exact = _read(values, read, np.float64, task, place, "a finite number")
    labels = exact.astype(np.float32)
    if np.abs(exact - labels).max(initial=0) > _ROUNDED * exact.std() and len(np.unique(labels)) < len(
        np.unique(exact)
    ):
        raise TaskDataError(
            f"Task {task.name}: `{task.label}` must have numbers that differ by more than float32 rounds them, but"
            f" {place.name} has numbers from {exact.min():.12g} to {exact.max():.12g}.",
            hint=f"subtract a number such as {exact.min():.12g} from all of them",
        )
    return labels


def finite_number(value: Any) -> float | None:
    """Return a value as a number, also one that is written as text; None if it is none, or not finite."""
    if isinstance(value, bool) or value is None or (isinstance(value, str) and "_" in value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _numeric_names(ids: Mapping[str, int]) -> dict[int | float, int]:
    """Return the names that are numbers: not `007`, nor two ways to write one number, such as `1` and `1.0`."""
    places: dict[int | float, list[int]] = {}
    for name, index in ids.items():
        if (number := _number(name)) is not None and not _PADDED.match(name):
            places.setdefault(number, []).append(index)
    return {number: indices[0] for number, indices in places.items() if len(indices) == 1}


def _number(value: Any) -> int | float | None:
    """Return the number that a value is or is written as; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if len(value) > 40 or not _NUMBER.fullmatch(value.strip()):
        return None
    return float(value) if "." in value else int(value)


def _read(  # each is a part of the message, or of what is read
    values: Sequence[Any],
    read: Callable[[Any], Any],
    dtype: type[Any],
    task: Task,
    place: SourceLocation,
    allowed: str,
    names: Sequence[str] = (),
) -> npt.NDArray[Any]:
    known: dict[tuple[type, Any], Any] = {}
    result = np.empty(len(values), dtype=dtype)
    faults: list[int] = []
    for row, value in enumerate(values):
        key = (type(value), value if value.__hash__ is not None else str(value))
        if key not in known:
            known[key] = read(value)
        if known[key] is None:
            faults.append(row)
        else:
            result[row] = known[key]
    if faults:
        wrong = dict.fromkeys(str(values[row]) for row in faults)  # maybe each row is wrong
        likely = {text: near for text in wrong if (near := meant(text, names))}
        first = f"Did you mean {_in_words(likely)}? " if likely else ""
        law, hint = f"{first}`{task.label}` must be {allowed}", "correct the rows, or the task's `labels`"
        refuse(task, law, values, faults, place, hint)
    return result


def _in_words(likely: Mapping[str, str]) -> str:
    """Return the label that was meant, or of several values the one that each was."""
    if len(likely) == 1:
        return next(iter(likely.values()))
    pairs = [f"{name} by {shortened(text)}" for text, name in likely.items()]
    return ", ".join(pairs[:_MEANT]) + (f" and {len(pairs) - _MEANT} more" if len(pairs) > _MEANT else "")


def missing_warnings(split: Split, what: str, missing: Sequence[str]) -> Iterator[str]:
    """Warn of answers that no row of a split has."""
    if missing:
        more = f" and {len(missing) - _WARNED} more" * (len(missing) > _WARNED)
        shown = f"{'s' * (len(missing) > 1)} {', '.join(missing[:_WARNED])}{more}"
        yield f"no {split} row has {what}{shown}, of which nothing is {'learnt' if split == 'train' else 'scored'}"
