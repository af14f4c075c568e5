"""What a text must be, in a data set and in a question to an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraxs_search.errors import TaskDataError
from loraxs_search.records import Task
from loraxs_search.tasks._source_location import Place


def check_texts(values: Sequence[Any], task: Task, column: str, place: Place) -> list[str]:
    """Return a text column.

    Raises:
        TaskDataError: something is no text, or no valid Unicode; every different one is named.
    """
    faults = [row for row, value in enumerate(values) if not _is_text(value)]
    if faults:
        raise TaskDataError(
            f"Task {task.name}: `{column}` must be text, but {place.name} has {place.values(values, faults)}.",
            hint="correct or remove the rows",
        )
    return list(values)


def blank_rows(texts: Sequence[str], pairs: Sequence[str] | None) -> list[int]:
    """Return the rows without anything to read: each of their texts is empty or white space."""
    empty = [row for row, text in enumerate(texts) if not text.strip()]
    return empty if pairs is None else [row for row in empty if not pairs[row].strip()]


def check_question(task: Task, texts: Sequence[Any], pairs: Sequence[Any] | None) -> None:
    """Refuse what nobody can judge.

    Raises:
        TaskDataError: there is no row, one has another number of texts than the task takes, or none to read.
    """
    takes = "two texts" if task.text_pair else "one text"
    if (pairs is not None) != (task.text_pair is not None) or (pairs is not None and len(pairs) != len(texts)):
        raise TaskDataError(f"Task {task.name} must be given {takes} per row.")
    if not texts:
        raise TaskDataError(f"Task {task.name} must be given at least one row.")
    place = Place("the request")
    for values in (texts, pairs):
        if values is not None and (faults := [row for row, value in enumerate(values) if not _is_text(value)]):
            raise TaskDataError(
                f"Task {task.name} must be given {takes} per row, but got {place.values(values, faults)}.",
                hint="give each text as a str",
            )
    if blank := blank_rows(texts, pairs):
        raise TaskDataError(
            f"Task {task.name} must be given text to read, but {place.row(blank[0])} has none"
            f"{f' ({len(blank)} such rows)' if len(blank) > 1 else ''}.",
            hint="leave out rows that are empty",
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and (value.isascii() or _is_unicode(value))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: neither a tokenizer nor a file takes it
        return False
    return True
