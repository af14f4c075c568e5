"""Rows of a file with separated values, each with its line."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from loraxs_search.tasks._columns import Columns, MalformedFileError

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}  # and how messages call them
_LISTED = 5
_QUOTES = 'a field that begins with a double quote ends with one, and has "" for each one in it'
_LOOKED_AT = 200  # lines that the separator is guessed from


def read_csv(text: str, usual: str, wanted: Sequence[str], optional: Sequence[str] = ()) -> Columns:
    """Read the columns `wanted`; every value stays text, as written.

    Lines without anything in them are skipped. Where a column is missing, no row is read.

    Args:
        usual: What separates values, unless another separator shows all of `wanted` in the header.
        optional: Further columns of the header, which are empty where a row ends before them.
    Raises:
        MalformedFileError: a name that stands twice in the header, a row with fields too many or too few, or a quote
            that is not closed.
    """
    csv.field_size_limit(sys.maxsize)  # of the process: a text may be longer than csv's 128 KiB
    shown = (each for each in (usual, *SEPARATORS) if set(wanted) <= set(_header(text, each)))
    separator = next(shown, None) or likely_separator(text, usual)
    rows = _rows(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), separator)
    names = [name.strip() for name in next(rows, (1, []))[1]]
    if not set(wanted) <= set(names):
        return Columns(names, {}, [])
    if twice := [name for name in dict.fromkeys(wanted) if names.count(name) > 1]:
        raise MalformedFileError(
            f"must name each column once, but its header has {', '.join(map(repr, twice))} twice",
            hint="rename or remove one of the two: which one is meant cannot be known",
        )
    return _columns(rows, names, wanted, optional)


def shows(text: str, wanted: Sequence[str]) -> bool:
    """Whether a text begins with a header that has all of `wanted`."""
    return any(set(wanted) <= set(_header(text, separator)) for separator in SEPARATORS)


def is_table(text: str) -> bool:
    """Whether a text begins with names, and all rows have as many fields, which are several, as few lines of prose."""
    separator = likely_separator(text, ",")
    names = _header(text, separator)
    if len(names) < 2 or len(set(names)) < len(names) or not all(map(str.isidentifier, names)):
        return False
    try:
        widths = [len(row) for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    except csv.Error:
        return False
    return len(widths) > 1 and set(widths) == {len(names)}


def _header(text: str, separator: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])]
    except csv.Error:
        return []


def likely_separator(text: str, usual: str) -> str:
    """Return the separator by which most of the first rows have as many fields as the header, which are several."""
    head = "\n".join(text.splitlines()[:_LOOKED_AT])

    def fitting(separator: str) -> tuple[float, bool]:
        try:
            widths = [len(row) for row in csv.reader(io.StringIO(head), delimiter=separator) if row]
        except csv.Error:
            return 0.0, False
        if not widths or widths[0] < 2:
            return 0.0, False
        return Counter(widths)[widths[0]] / len(widths), separator == usual

    best = max(SEPARATORS, key=fitting)
    return best if fitting(best)[0] > 0.5 else usual


def _columns(
    rows: Iterator[tuple[int, list[str]]], names: list[str], wanted: Sequence[str], optional: Sequence[str]
) -> Columns:
    columns = [*wanted, *optional]
    places = [names.index(name) for name in columns]
    least = max(places[: len(wanted)])
    lines, values, wrong = list[int](), [list[str]() for _ in columns], list[str]()
    for line, fields in rows:
        if len(fields) <= least or any(field.strip() for field in fields[len(names) :]):
            wrong.append(f"line {line} has {len(fields)}")
            continue
        lines.append(line)
        for column, place in zip(values, places, strict=True):
            column.append(fields[place] if place < len(fields) else "")
    if wrong:
        more = f" and {len(wrong) - _LISTED} more lines have others" if len(wrong) > _LISTED else ""
        raise MalformedFileError(
            f"must have a field for each of the {len(names)} columns, but {', '.join(wrong[:_LISTED])}{more}",
            hint="a text with the separator or a line break in it must stand in double quotes",
        )
    return Columns(names, dict(zip(columns, values, strict=True)), lines)


def _rows(reader: Iterator[list[str]], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line that a row begins in, and its fields."""
    line, width = 1, 0
    try:
        for fields in reader:
            begin, line = line, reader.line_num + 1  # type: ignore[attr-defined]
            width = width or len(fields)
            if line - begin > 1 and any(_swallows(fields, at, width, separator) for at in range(len(fields))):
                raise MalformedFileError(
                    f"must close a quote in its row, but the one in line {begin} goes on to line {line - 1}, over lines"
                    " that are rows by themselves",
                    hint=_QUOTES,
                )
            if any(field.strip() for field in fields):
                yield begin, fields
    except csv.Error as error:
        raise MalformedFileError(
            f"must be separated values, but the row in line {line} cannot be read: {error}",
            hint=_QUOTES,
        ) from error


def _swallows(fields: list[str], at: int, width: int, separator: str) -> bool:
    """Whether the lines of a field are rows by themselves, which a quote that stands for itself has joined.

    Then each has as many separators as the header. A text has commas often, in numbers too: of other separators than
    tabs none may have space behind it, and the lines must be three at least.
    """
    lines = fields[at].splitlines()
    if len(lines) < 2 or width < 2:
        return False
    counts = [line.count(separator) for line in lines]
    counts[0] += at
    counts[-1] += len(fields) - 1 - at
    if set(counts) != {width - 1}:
        return False
    return separator == "\t" or (len(lines) > 2 and not re.search(rf"{re.escape(separator)}(\s|$)", fields[at]))
