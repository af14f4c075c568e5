"""Rows to be answered, from a file: read as training data are, with the columns that an adapter reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraxs_search.errors import UsageError, unknown_name
from loraxs_search.home import disk_faults
from loraxs_search.tasks._columns import Columns, MalformedFileError
from loraxs_search.tasks._files import file_format, read_columns


def read_questions(path: Path, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the rows of a file, each with these columns; where both have only one, its name is not asked for.

    Args:
        path: A file that training data may stand in, or a .txt with a text in each line.
    Raises:
        UsageError: there is no such file, it cannot be read, lacks a column, or has no row.
        HomeError: the disk fails.
    """
    if not path.is_file():
        raise UsageError(f"`--file` must name a file, or - for standard input, but there is no {path}.")
    with disk_faults(path, "--file"):
        content = path.read_bytes()
    if path.suffix.lower() == ".txt":
        return read_lines(content, str(path), columns)
    try:
        file_format(path)
        read = read_columns(path, content, columns)
        if len(read.available) == len(columns) == 1 and not read.values:
            read = read_columns(path, content, read.available)
            columns = read.available
    except MalformedFileError as error:
        raise UsageError(f"`--file` {error.message}: {path}.", hint=error.hint) from error
    return _rows(read, path, columns)


def read_lines(content: bytes, source: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return a row for each line that is not empty.

    Raises:
        UsageError: it is no UTF-8, rows need several columns, or there is none.
    """
    if len(columns) > 1:
        raise UsageError(
            f"A row of this task has {', '.join(columns)}, but a line of {source} has one text.",
            hint="give a .csv with these columns, or a .jsonl with these keys",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"`--file` must be text in UTF-8, but line {line} of {source} is not.",
            hint="save it as UTF-8; `iconv -f latin1 -t utf-8` does that to a file in Latin-1",
        ) from error
    return _some([(line,) for line in text.splitlines() if line.strip()], source)


def _rows(read: Columns, path: Path, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    for name in columns:
        if name not in read.values:
            message = unknown_name("column", name, read.available)
            raise UsageError(f"{path} lacks a column of the task. {message}", hint=f"it needs {', '.join(columns)}")
    return _some(list(zip(*(read.values[name] for name in columns), strict=True)), str(path))


def _some(rows: list[tuple[Any, ...]], source: str) -> list[tuple[Any, ...]]:
    if not rows:
        raise UsageError(f"`--file` must have a row at least, but {source} has none.")
    return rows
