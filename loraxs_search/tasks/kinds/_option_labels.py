"""Which option of each row is right, from a stored column: by index, letter or the option's text, or by given names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TaskDataError, shortened
from loraxs_search.records import Task
from loraxs_search.tasks._faults import joined
from loraxs_search.tasks._source_location import SourceLocation
from loraxs_search.tasks._texts import composed
from loraxs_search.tasks.kinds._templates import written

Options = Sequence[str]
_Reading = Callable[[Any, Options], int | None]


def option_labels(
    values: Sequence[Any], options: Sequence[Options], task: Task, place: SourceLocation
) -> npt.NDArray[np.int64]:
    """Return the index of each row's right option, (N,).

    The whole column is read in one way: the one that fits every row. Where several fit, they must agree on every row.
    Of equal options it is the first: a model holds them equally likely, and the first of the likeliest is its answer.

    Args:
        values: The column, as stored.
        options: Each row's; a row without any is not judged, and gets 0.
    Raises:
        TaskDataError: no way of reading fits every row, or two do and differ.
    """
    judged = [row for row, own in enumerate(options) if own]
    answers = {
        name: [_first_equal(read(values[row], options[row]), options[row]) for row in judged]
        for name, read in _READINGS.items()
    }
    fitting = {name: found for name, found in answers.items() if None not in found}
    if not fitting:
        raise _misfit(values, judged, answers, task, place)
    (name, found), *others = fitting.items()
    for other, theirs in others:
        if differing := [row for row, one, two in zip(judged, found, theirs, strict=True) if one != two]:
            raise _ambiguous(values, options, differing, (name, other), task, place)
    labels = np.zeros(len(values), np.int64)
    labels[judged] = np.array(found, np.int64)
    return labels


def named_labels(
    values: Sequence[Any], names: Sequence[Any], options: Sequence[Options], task: Task, place: SourceLocation
) -> npt.NDArray[np.int64]:
    """Return the index of each row's right option, (N,), where the column holds names of options.

    Args:
        values: The column, as stored.
        names: Of each row's options, in their order, as stored.
        options: Each row's; a row without any is not judged, and gets 0.
    Raises:
        TaskDataError: a row has another number of names than of options, or its label is none of them.
    """
    labels, faults, uneven, doubled = np.zeros(len(values), np.int64), list[int](), list[int](), list[int]()
    for row, own in enumerate(options):
        known = [_plain(name) for name in names[row]] if isinstance(names[row], list | tuple) else []
        if own and len(known) != len(own):
            uneven.append(row)
        elif own and len(set(known)) < len(known):
            doubled.append(row)
        elif own:
            label = _plain(values[row])
            faults += [] if label in known else [row]
            labels[row] = (_first_equal(known.index(label), own) or 0) if label in known else 0
    where = [
        (uneven, names, "option_names", "hold a name for each option of its row"),
        (doubled, names, "option_names", "hold names that differ from each other"),
        (faults, values, task.settings["label"], "be one of the names of its row's options"),
    ]
    errors = [
        TaskDataError(
            f"Task {task.name}: `{key}` must {law}, but {place.name} has {place.values(stored, rows)}.",
            hint="correct the rows, or the task's `option_names`",
        )
        for rows, stored, key, law in where
        if rows
    ]
    if errors:
        raise joined(task, errors)
    return labels


def _plain(value: Any) -> str:
    try:
        return composed(written(value).strip())
    except ValueError:
        return ""


def option_letter(index: int) -> str:
    """Return the letter by which people call an option, or its index where letters do not reach."""
    return ascii_uppercase[index] if index < len(ascii_uppercase) else str(index)


def _first_equal(index: int | None, options: Options) -> int | None:
    return None if index is None else next(i for i, option in enumerate(options) if option == options[index])


def _by_index(value: Any, options: Options) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value) if len(value.strip()) < 10 else None
    if isinstance(value, float) and value.is_integer():  # where Arrow has made room for missing values
        value = int(value)
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(options)
    return value if fits else None


def _by_letter(value: Any, options: Options) -> int | None:
    letter = value.strip().upper() if isinstance(value, str) else ""
    index = ascii_uppercase.find(letter) if len(letter) == 1 else -1
    return index if 0 <= index < len(options) else None


def _by_text(value: Any, options: Options) -> int | None:
    text = _plain(value)
    return next((index for index, option in enumerate(options) if composed(option.strip()) == text), None)


_READINGS: dict[str, _Reading] = {"index": _by_index, "letter": _by_letter, "text": _by_text}
_LAWS = {"index": "index, counted from 0,", "letter": "letter, from A,", "text": "text"}


def _misfit(
    values: Sequence[Any],
    judged: Sequence[int],
    answers: dict[str, list[int | None]],
    task: Task,
    place: SourceLocation,
) -> TaskDataError:
    """Name the rows that the likeliest reading does not fit."""
    misfits = {
        name: [row for row, it in zip(judged, found, strict=True) if it is None] for name, found in answers.items()
    }
    name = min(misfits, key=lambda key: len(misfits[key]))
    some = len(judged) - len(misfits[name])
    law = f"the {_LAWS[name]} of one of its row's options" if some else "the index, letter or text of an option"
    others = f", as it is in {some:,} other row{'s' * (some > 1)}" if some else ""
    return TaskDataError(
        f"Task {task.name}: `{task.settings['label']}` must be {law}{others}, but {place.name} has"
        f" {place.values(values, misfits[name])}.",
        hint="correct the rows, or the task's `options`",
    )


def _ambiguous(
    values: Sequence[Any],
    options: Sequence[Options],
    rows: Sequence[int],
    names: tuple[str, str],
    task: Task,
    place: SourceLocation,
) -> TaskDataError:
    row = rows[0]
    means = [
        shortened(options[row][index])
        for name in names
        if (index := _READINGS[name](values[row], options[row])) is not None
    ]
    free = next(name for name in ("letter", "index") if name not in names)
    return TaskDataError(
        f"Task {task.name}: `{task.settings['label']}` must name options in one way only, but every row of {place.name}"
        f" can be read as {names[0]} and as {names[1]}, and {place.values(values, rows)} would mean"
        f" {' or '.join(means)}.",
        hint=f"write each label as the option's {_LAWS[free].rstrip(',')}",
    )
