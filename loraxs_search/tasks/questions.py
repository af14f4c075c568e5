"""Questions to an adapter: as callers give them, from a file, or from standard input.

Files are read as training data are, with an adapter's columns.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraxs_search.errors import UsageError, meant
from loraxs_search.home import disk_faults, meant_file
from loraxs_search.tasks.files import decoded, file_format, is_table, read_columns, shows, unpacked, warn_of_encoding
from loraxs_search.tasks.rows import TEXT_NAMES, Columns, MalformedFileError, SourceLocation


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
        names, read = list(texts.columns), list[list[Any]]()
        for name in columns:
            if names.count(name) != 1:
                has = "has it twice" if name in names else f"has: {', '.join(map(str, names))}"
                near = "" if name in names else meant(name, [str(other) for other in names])
                raise UsageError(
                    f"`texts` must have the column {name}, which the task reads, but {has}.",
                    hint=f"rename the column {near} to {name}"
                    if near
                    else "give the columns that the task was trained on",
                )
            column = texts[name]
            values: list[Any] = [None if missing else it for it, missing in zip(column, column.isna(), strict=True)]
            read.append([value.tolist() if hasattr(value, "tolist") else value for value in values])
        return list(zip(*read, strict=True))
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
    if hasattr(texts, "columns"):  # it lists the names of its columns
        raise UsageError(
            f"`{name}` must be a text or a list of texts, but got {type(texts).__name__}.",
            hint="give a pandas DataFrame, a list of texts, or the rows as a list of tuples",
        )
    is_list = hasattr(texts, "__len__") and hasattr(texts, "__getitem__")
    if not is_list or isinstance(texts, bytes | Mapping):
        raise UsageError(
            f"`{name}` must be a text or a list of texts, but got {type(texts).__name__}.",
            hint='give ["one text", "another"], and of several columns the values of a row as a tuple',
        )
    return list(texts)


log = logging.getLogger(__name__)

_TEXT = ".txt"
_STDIN = "standard input"


@dataclass(frozen=True)
class QuestionRows:
    """Rows to be answered.

    Args:
        rows: Each with the values of the adapter's columns.
        place: Where they stand, for messages.
        columns: All columns of the source in its order, where they were asked for.
    """

    rows: list[tuple[Any, ...]]
    place: SourceLocation
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def question_path(source: str) -> Path:
    """Return the path of a file of rows.

    Raises:
        UsageError: there is no such file.
    """
    path = Path(source).expanduser()
    if not source or not path.is_file():
        got = f"{source} is a folder" if source and path.is_dir() else f"there is no {source or repr(source)}"
        raise UsageError(
            f"{meant_file(path)}`--file` must name a file, or - for standard input, but {got}.",
            hint="download it first: only files of this machine are read" if "://" in source else _HINT,
        )
    return path


def read_questions(source: str, columns: Sequence[str], *, whole: bool = False) -> QuestionRows:
    """Return the rows of a file, each with these columns; where both have only one, its name is not asked for.

    Args:
        source: The path of a file that training data may stand in, or of a .txt with a text in each line, of which a
            blank one is an empty row; those at the end are none.
        whole: Whether the file's other columns are read too.
    Raises:
        UsageError: there is no such file, it cannot be read, lacks a column, or has no row.
        HomeError: the disk fails.
    """
    path = question_path(source)
    with disk_faults(path, "--file"):
        content = path.read_bytes()
    try:
        warn_of_encoding(path, content)
        if file_format(path, (_TEXT,)) == _TEXT:
            return _lines(decoded(unpacked(path, content))[0], source, columns)
        return _read_table(path, content, source, columns, whole)
    except MalformedFileError as error:
        raise UsageError(f"`--file` {error.message}: {source}.", hint=error.hint) from error


def read_standard_input(content: bytes, columns: Sequence[str], *, whole: bool = False) -> QuestionRows:
    """Return the rows of standard input: a text in each line, or JSONL or CSV where the first line shows it.

    Raises:
        UsageError: it is no text, it lacks a column, or has no row.
    """
    try:
        text, _ = decoded(content)
        first = next((line for line in text.split("\n") if line.strip()), "")
        title = first.strip().strip('"')  # the name of the one column, above lines of text
        is_named = len(columns) == 1 and (title.lower() in TEXT_NAMES or title == columns[0])
        ending = _TEXT
        if is_named or shows(text.lstrip(), columns) or is_table(text.lstrip()):
            ending = ".csv"
        if first.startswith(("{", "[")):
            with contextlib.suppress(ValueError, RecursionError):
                json.loads(first if first[0] == "{" else text)
                ending = ".jsonl"
        if ending == _TEXT:
            return _lines(text, _STDIN, columns)
        try:
            return _read_table(Path(f"stdin{ending}"), content, _STDIN, columns, whole)
        except MalformedFileError:
            if not is_named:
                raise
            log.warning(_NAMED, _STDIN, title)  # as `cut` writes a column: its texts stand in no quotes
            return _lines(text, _STDIN, columns, skip=True)
    except MalformedFileError as error:
        raise UsageError(f"`--file` {error.message}: {_STDIN}.", hint=error.hint) from error


_NAMED = "%s: %r is read as the name of its column, not as a text"
_HINT = "a .txt has a text in each line; a .csv, .tsv, .jsonl, .parquet or .conll has the columns that the task reads"


def _read_table(path: Path, content: bytes, source: str, columns: Sequence[str], whole: bool) -> QuestionRows:
    read = read_columns(path, content, columns)
    names = read.available
    if len(names) == len(columns) == 1 and not read.values and names[0].strip():
        log.warning(_NAMED, source, names[0])
        named = read_columns(path, content, names)
        only = Columns(list(columns), {columns[0]: named.values[names[0]]}, named.lines)
        return replace(_of_columns(only, source, columns), columns=named.values)
    rows = _of_columns(read, source, columns)
    if not whole:
        return rows
    parts = {name for name in columns if "." in name and name.partition(".")[0] in names}  # no columns of the file
    own = [name for name in names if name not in parts]
    if twice := [name for name in dict.fromkeys(own) if own.count(name) > 1]:
        raise MalformedFileError(
            f"must name each column once where answers keep all, but has {', '.join(map(repr, twice))} twice",
            hint="rename or remove one of the two",
        )
    values = read_columns(path, content, columns, [name for name in own if name not in columns]).values
    return replace(rows, columns={name: values[name] for name in own if name in values and (name or any(values[name]))})


def _lines(text: str, source: str, columns: Sequence[str], *, skip: bool = False) -> QuestionRows:
    if len(columns) > 1:
        raise UsageError(
            f"A row of this task has {', '.join(columns)}, but a line of {source} has one text.",
            hint="give a .csv with these columns, or a .jsonl with these keys",
        )
    end = "\n" if "\n" in text else "\r"  # a lone return ends lines only where nothing else does, as on an old Mac
    lines = [line.rstrip("\r") for line in text.split(end)]
    full = [number for number, line in enumerate(lines) if line.strip()]
    # A blank line between others is an empty row: without it, answers would stand beside other rows.
    kept = range(full[0] + 1 if skip else 0, full[-1] + 1) if full else range(0)
    texts = [lines[number] for number in kept]
    rows = _some([(text,) for text in texts], SourceLocation(source, [number + 1 for number in kept]))
    return replace(rows, columns={columns[0]: texts})


def _of_columns(read: Columns, source: str, columns: Sequence[str]) -> QuestionRows:
    place = SourceLocation(source, read.lines)
    if not any(name.strip() for name in read.available):
        return _some([], place)
    for name in columns:
        if name not in read.values:
            near = meant(name, read.available)
            way = f"rename the column {near or 'of the texts'} to {name}"
            if not near and len(columns) == 1:
                way += ", or leave only that one: then its name does not matter"
            if source == _STDIN and len(columns) == 1:
                way += "; lines of text that look like a table are read as they are from a .txt"
            raise UsageError(
                f"{source} must have the column {name}, which the task reads, but has: {', '.join(read.available)}.",
                hint=way,
            )
    return _some(list(zip(*(read.values[name] for name in columns), strict=True)), place)


def _some(rows: list[tuple[Any, ...]], place: SourceLocation) -> QuestionRows:
    if not rows:
        raise UsageError(f"`--file` must have a row at least, but {place.name} has none.", hint=_HINT)
    return QuestionRows(rows, place)
