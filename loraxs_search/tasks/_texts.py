"""What a text must be, in a data set and in a question to an adapter."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from loraxs_search.errors import TaskDataError, shortened
from loraxs_search.records import Task
from loraxs_search.tasks._source_location import SourceLocation

_NUMBERS = {1: "one", 2: "two", 3: "three"}


def check_texts(values: Sequence[Any], task: Task, column: str, place: SourceLocation) -> list[str]:
    """Return a text column.

    Raises:
        TaskDataError: something is no text, or no valid Unicode; every different one is named.
    """
    faults = [row for row, value in enumerate(values) if not is_text(value)]
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


def check_question(
    task: Task, rows: Sequence[tuple[Any, ...]], names: Sequence[str], place: SourceLocation | None = None
) -> None:
    """Refuse what nobody can judge.

    Args:
        names: Of the texts of a row.
        place: The file that rows are from; None where somebody gave them as they are.
    Raises:
        TaskDataError: there is no row, one has another number of texts than the task takes, or none to read.
    """
    takes = f"{_NUMBERS.get(len(names), len(names))} text{'s' * (len(names) > 1)}"
    if not rows:
        raise TaskDataError(f"Task {task.name} must be given at least one row.")
    if wrong := [row for row in rows if len(row) != len(names)]:
        got = wrong[0][0] if len(wrong[0]) == 1 else wrong[0]
        raise TaskDataError(
            f"Task {task.name} must be given {takes} per row, but got {shortened(got)}.",
            hint=f"a row is {' then '.join(names)}",
        )
    got, of_file = ("got", "") if place is None else (f"{place.name} has", f" of {place.name}")
    place = place or SourceLocation("the request")
    columns = [[row[i] for row in rows] for i in range(len(names))]
    for values in columns:
        if faults := [row for row, value in enumerate(values) if not isinstance(value, str)]:
            raise TaskDataError(
                f"Task {task.name} must be given {takes} per row, but {got} {place.values(values, faults)}.",
                hint="give each text as text: in quotes in JSON, as a str in Python",
            )
        if faults := [row for row, value in enumerate(values) if not is_text(value)]:
            raise TaskDataError(
                f"Task {task.name} must be given valid Unicode, but {got} {place.values(values, faults)}.",
                hint="it has bytes that are not UTF-8, or half of a surrogate pair: write it as UTF-8",
            )
    if blank := [number for number, row in enumerate(rows) if not "".join(row).strip()]:
        raise TaskDataError(
            f"Task {task.name} must be given text to read, but {place.row(blank[0])}{of_file} has none"
            f"{f' ({len(blank)} such rows)' if len(blank) > 1 else ''}.",
            hint="leave out rows that are empty; `predict --file` does with --skip-empty",
        )


def composed(text: str) -> str:
    """Return a text in the form in which those are equal that look alike: an accent may be a character of its own."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def is_text(value: Any) -> bool:
    """Whether a value is a text that a tokenizer takes."""
    return isinstance(value, str) and (value.isascii() or _is_unicode(value))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: neither a tokenizer nor a file takes it
        return False
    return True
