"""Turn a stored label column into ids or numbers, naming the first row that does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TaskDataError
from loraxs_search.records import Task


def class_ids(
    values: Sequence[Any], task: Task, place: str, stored_names: Sequence[str] | None = None
) -> npt.NDArray[np.int64]:
    """Return label ids, shape (N,), from label names or ids.

    Args:
        stored_names: Label names that the file itself gives to its ids. Where they are the task's in another order,
            they decide; otherwise ids count as the task's.
    Raises:
        TaskDataError: a label is missing or outside the set; rows count from 1.
    """
    names = {name: index for index, name in enumerate(task.labels)}
    allowed = f"one of {', '.join(task.labels)} or an id in 0..{len(names) - 1}"
    by_name = {str(name).lower(): index for name, index in names.items()}
    translated = list(stored_names or ()) if set(stored_names or ()) == set(names) else None
    named_by_digits = all(name.lstrip("-").isdigit() for name in names)

    def read(value: Any) -> int | None:
        if translated is not None and isinstance(value, int) and 0 <= value < len(translated):
            return names[translated[value]]
        if isinstance(value, bool):
            return by_name.get(str(value).lower(), int(value))
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(value)
        if text in names and (isinstance(value, str) or named_by_digits):
            return names[text]
        index = _integer(text)
        return index if index is not None and 0 <= index < len(names) else None

    return _read(values, read, np.int64, task, place, allowed)


def numbers(values: Sequence[Any], task: Task, place: str) -> npt.NDArray[np.float32]:
    """Return regression targets, shape (N,).

    Raises:
        TaskDataError: a label is missing, not a number, or not finite; rows count from 1.
    """

    def read(value: Any) -> float | None:
        if isinstance(value, bool) or value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        return number if math.isfinite(number) else None

    return _read(values, read, np.float32, task, place, "a finite number")


def _read(
    values: Sequence[Any], read: Callable[[Any], Any], dtype: type[Any], task: Task, place: str, allowed: str
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
        more = f" (and {len(faults) - 1} more rows)" if len(faults) > 1 else ""
        raise TaskDataError(
            f"Task {task.name}: `{task.label}` must be {allowed}, but row {faults[0] + 1} of {place} has"
            f" {values[faults[0]]!r}{more}.",
            hint="correct the rows, or the task's `labels`",
        )
    return result


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
