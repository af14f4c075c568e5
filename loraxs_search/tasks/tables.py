"""A whole file of rows, read to see what is in it: also where its separator or encoding is not what its ending says."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraxs_search.errors import TaskDataError, UsageError
from loraxs_search.home import disk_faults
from loraxs_search.tasks._columns import MalformedFileError
from loraxs_search.tasks._csv import read_csv
from loraxs_search.tasks._files import file_format, read_columns, unpacked

_SEPARATORS = (",", ";", "\t", "|")
_LOOKED_AT = 200  # lines that the separator is guessed from


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Args:
        columns: Each column's values, one a row; of a file with separated values all are text.
        lines: The line that each row begins in; None where rows have no lines.
        is_plain: Whether a task reads the file as it is: UTF-8, and the separator that its ending says.
        remark: What it is where it is not plain, for people.
    """

    path: Path
    columns: dict[str, list[Any]]
    lines: list[int] | None
    is_plain: bool = True
    remark: str = ""

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def place(self, row: int) -> str:
        """Return where a row stands, for people."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def save_plain(self, path: Path) -> None:
        """Write the rows as UTF-8 with commas."""
        with disk_faults(path, "the data"), path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(zip(*self.columns.values(), strict=True))


def read_table(path: Path) -> Table:
    """Read all columns of a file.

    Raises:
        UsageError: there is no such file, or its ending is none that is known.
        TaskDataError: it is not what it seems to be, or holds no row.
    """
    if not path.is_file():
        raise UsageError(
            f"The data must be a file, but there is no {path}.", hint="name a .csv, .jsonl or .parquet file"
        )
    with disk_faults(path, "the data"):
        content = path.read_bytes()
    try:
        ending = file_format(path)
    except MalformedFileError as error:
        raise UsageError(f"A data file {error.message}, but got {path}.", hint=error.hint) from error
    try:
        if ending in (".csv", ".tsv"):
            table = _separated(path, unpacked(path, content), "\t" if ending == ".tsv" else ",")
        else:
            names = read_columns(path, content, [""]).available  # no column has that name
            read = read_columns(path, content, names)
            table = Table(path, read.values, read.lines)
    except MalformedFileError as error:
        raise TaskDataError(f"{path} {error.message}.", hint=error.hint) from error
    if not table.num_rows:
        raise TaskDataError(f"{path} must have a row at least, but has none.", hint="the first line names the columns")
    return table


def _separated(path: Path, content: bytes, usual: str) -> Table:
    text, encoding = _decoded(content)
    separator = _separator(text, usual)
    header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    names = [name.strip() for name in header]
    if empty := [str(place) for place, name in enumerate(names, start=1) if not name]:
        raise MalformedFileError(
            f"must name each column in its first line, but column {', '.join(empty)} has no name", hint="name it"
        )
    read = read_csv(text, separator, names)
    remarks = [f"{encoding} instead of UTF-8"] if encoding else []
    if separator != usual:
        words = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
        remarks.append(f"{words[separator]} instead of {words[usual]}")
    return Table(path, read.values, read.lines, not remarks, " and ".join(remarks))


def _decoded(content: bytes) -> tuple[str, str]:
    """Return a text, and its encoding where that is not UTF-8."""
    try:
        return content.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        pass
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16"), "UTF-16"
        except UnicodeDecodeError as error:
            raise MalformedFileError(f"must be text, but: {error}", hint="save it as UTF-8") from error
    if b"\0" in content:
        raise MalformedFileError("must be text, but has zero bytes in it", hint="save it as UTF-8")
    try:
        return content.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "Latin-1"


def _separator(text: str, usual: str) -> str:
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

    best = max(_SEPARATORS, key=fitting)
    return best if fitting(best)[0] > 0.5 else usual
