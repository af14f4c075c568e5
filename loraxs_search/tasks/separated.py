"""Rows of a file with separated values, each with its line."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from loraxs_search.tasks.rows import Columns, MalformedFileError

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}  # and how messages call them
_LISTED = 5
_QUOTES = 'a field that begins with a double quote ends with one, and has "" for each one in it'
_ON_PURPOSE = 0.1  # share of the rows of several lines that look like several rows; fewer are chance
_LONGEST_NAME = 10  # characters of a column's name in a script that writes no spaces: longer ones are sentences
_LOOKED_AT = 200  # lines that the separator is guessed from


def read_csv(
    text: str, usual: str, wanted: Sequence[str], optional: Sequence[str] = (), names: Sequence[str] = ()
) -> Columns:
    """Read the columns `wanted`; every value stays text, as written.

    Lines without anything in them are skipped. Where a column is missing, no row is read.

    Args:
        usual: What separates values, unless another separator shows all of `wanted` in the header.
        optional: Further columns of the header, which are empty where a row ends before them.
        names: Of all columns, where the text has no header.
    Raises:
        MalformedFileError: a name that stands twice in the header, a row with fields too many or too few, or a quote
            that is not closed.
    """
    shown = (each for each in (usual, *SEPARATORS) if set(wanted) <= set(header(text, each)))
    separator = next(shown, None) or likely_separator(text, usual)
    rows = _rows(_reader(text, separator, strict=True))
    names = list(names) or [name.strip() for name in next(rows, _Row(1, 1, [])).fields]
    if not set(wanted) <= set(names):
        return Columns(names, {}, [])
    if twice := [name for name in dict.fromkeys(wanted) if names.count(name) > 1]:
        raise MalformedFileError(
            f"must name each column once, but its header has {', '.join(map(repr, twice))} twice",
            hint="rename or remove one of the two: which one is meant cannot be known",
        )
    kept = list(rows)
    _check_swallowed(kept, len(names), separator)
    return _columns(kept, names, wanted, optional)


def shows(text: str, wanted: Sequence[str]) -> bool:
    """Whether a text begins with a header that has all of `wanted`."""
    return any(set(wanted) <= set(header(text, separator)) for separator in SEPARATORS)


def is_table(text: str) -> bool:
    """Whether a text begins with names, and all rows have as many fields, which are several, as few lines of prose."""
    separator = likely_separator(text, ",")
    names = header(text, separator)
    if len(names) < 2 or len(set(names)) < len(names) or not all(map(_is_name, names)):
        return False
    try:
        widths = [len(row) for row in _reader(text, separator) if row]
    except csv.Error:
        return False
    return len(widths) > 1 and set(widths) == {len(names)}


def _is_name(text: str) -> bool:
    """Whether a text may be the name of a column: one word. A sentence of Chinese has no spaces either."""
    return text.isidentifier() and (text.isascii() or len(text) <= _LONGEST_NAME)


def header(text: str, separator: str) -> list[str]:
    """Return the names in the first line; empty where it cannot be read."""
    try:
        return [name.strip() for name in next(_reader(text, separator), [])]
    except csv.Error:
        return []


def _reader(text: str, separator: str, strict: bool = False) -> Iterator[list[str]]:
    csv.field_size_limit(sys.maxsize)  # of the process: a text may be longer than csv's 128 KiB
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)


def likely_separator(text: str, usual: str) -> str:
    """Return the separator by which most of the first rows have as many fields as the header, which are several."""
    head = "\n".join(text.splitlines()[:_LOOKED_AT])

    def fitting(separator: str) -> tuple[float, bool]:
        try:
            widths = [len(row) for row in _reader(head, separator) if row]
        except csv.Error:
            return 0.0, False
        if not widths or widths[0] < 2:
            return 0.0, False
        return Counter(widths)[widths[0]] / len(widths), separator == usual

    best = max(SEPARATORS, key=fitting)
    return best if fitting(best)[0] > 0.5 else usual


@dataclass(frozen=True)
class _Row:
    """A row and the lines that it stands in, from `line` to `last`."""

    line: int
    last: int
    fields: list[str]


def _columns(rows: Sequence[_Row], names: list[str], wanted: Sequence[str], optional: Sequence[str]) -> Columns:
    columns = [*wanted, *optional]
    places = [names.index(name) for name in columns]
    least = max(places[: len(wanted)])
    lines, values, wrong = list[int](), [list[str]() for _ in columns], list[str]()
    for row in rows:
        fields = row.fields
        if len(fields) <= least or any(field.strip() for field in fields[len(names) :]):
            wrong.append(f"line {row.line} has {len(fields)}")
            continue
        lines.append(row.line)
        for column, place in zip(values, places, strict=True):
            column.append(fields[place] if place < len(fields) else "")
    if wrong:
        more = f" and {len(wrong) - _LISTED} more lines have others" if len(wrong) > _LISTED else ""
        raise MalformedFileError(
            f"must have a field for each of the {len(names)} columns, but {', '.join(wrong[:_LISTED])}{more}",
            hint="a text with the separator or a line break in it must stand in double quotes",
        )
    return Columns(names, dict(zip(columns, values, strict=True)), lines)


def _rows(reader: Iterator[list[str]]) -> Iterator[_Row]:
    line = 1
    try:
        for fields in reader:
            begin, line = line, reader.line_num + 1  # type: ignore[attr-defined]
            if any(field.strip() for field in fields):
                yield _Row(begin, line - 1, fields)
    except csv.Error as error:
        raise MalformedFileError(
            f"must be separated values, but the row in line {line} cannot be read: {error}", hint=_QUOTES
        ) from error


# ---- quotes that stand for themselves --------------------------------------------------------------------------------
def _check_swallowed(rows: Sequence[_Row], width: int, separator: str) -> None:
    """Refuse quotes that stand for themselves: each joins rows up to the next one.

    A file that has many texts of several lines was written with quotes on purpose: there a text may look like rows.

    Raises:
        MalformedFileError: the lines of a row are rows by themselves.
    """
    joined = [row for row in rows if row.last > row.line] if width > 1 else []
    if not joined:
        return
    plain = [row.fields for row in rows if row.last == row.line and len(row.fields) >= width]
    repeated = [_repeated([fields[place] for fields in plain]) for place in range(width)]
    swallowing = [
        row
        for row in joined
        if any(_swallows(row.fields, at, separator, repeated) for at in range(min(width, len(row.fields))))
    ]
    if swallowing and len(swallowing) >= _ON_PURPOSE * len(joined):
        row = swallowing[0]
        raise MalformedFileError(
            f"must close a quote in its row, but the one in line {row.line} continues to line {row.last}, over lines"
            " that are rows by themselves",
            hint=f"{_QUOTES}; if these lines are one text, give the rows as .jsonl, where that is clear",
        )


def _repeated(values: Sequence[str]) -> frozenset[str] | None:
    """Return the values of a column that has few, such as labels; None of another one."""
    known = frozenset(value.strip() for value in values)
    return known if 2 * len(known) <= len(values) else None


def _swallows(fields: list[str], at: int, separator: str, repeated: Sequence[frozenset[str] | None]) -> bool:
    """Whether the lines of a field are rows by themselves, which a quote that stands for itself has joined.

    Then each has as many separators as the header, and columns that have few values have these there too. Where there
    is no such column, a text has commas often, in numbers too: of other separators than tabs none may have space behind
    it, and the lines must be three at least.
    """
    lines, width = fields[at].splitlines(), len(repeated)
    if len(lines) < 2:
        return False
    rows = [line.split(separator) for line in lines]
    rows[0], rows[-1] = [*fields[:at], *rows[0]], [*rows[-1], *fields[at + 1 :]]
    if any(len(row) != width for row in rows):
        return False
    first, end = at + 1, (len(rows) - 1) * width + at  # of the cells that stand within the field
    cells = [(number % width, value.strip()) for number, value in enumerate(chain.from_iterable(rows))]
    likely = [
        value in known for column, value in cells[first:end] if column != at and value and (known := repeated[column])
    ]
    if likely:
        return all(likely)
    return separator == "\t" or (len(lines) > 2 and not re.search(rf"{re.escape(separator)}(\s|$)", fields[at]))
