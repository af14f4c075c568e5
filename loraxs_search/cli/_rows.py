"""Rows to predict, from a file or from standard input, and answers in the forms that programs read."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraxs_search.errors import UsageError, unknown_name
from loraxs_search.home import disk_faults

if TYPE_CHECKING:
    from loraxs_search.records import Prediction

Row = tuple[Any, ...]
Form = Literal["text", "csv", "jsonl"]

STDIN = "-"
_TABLES = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".json")


def read_rows(source: str, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a file, each with a task's columns.

    Args:
        source: A file: .csv and .tsv with a header, .jsonl with an object or a text in each line, any other with a text
            in each line; `-` is standard input, with a text in each line.
        columns: What a row must have; of a file with a single column its name is not asked for.
    Raises:
        UsageError: it cannot be read, or lacks a column; says which row.
    """
    kind = "" if source == STDIN else Path(source).suffix.lower()
    text = _text(source)
    if kind in _TABLES:
        rows = list(_table(source, text, _TABLES[kind], columns))
    elif kind in _LINES:
        rows = list(_objects(source, text, columns))
    else:
        rows = list(_plain(source, text, columns))
    if not rows:
        raise UsageError(f"`--file` must have a row at least, but {_named(source)} has none.")
    return rows


def write_predictions(predictions: Iterable[Prediction], form: Form, *, header: bool) -> None:
    """Write answers to stdout as CSV or JSONL; lines and tabs inside a text survive."""
    if form == "jsonl":
        for prediction in predictions:
            print(json.dumps(asdict(prediction), ensure_ascii=False))
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if header:
        writer.writerow(["text", "label", "score"])
    for prediction in predictions:
        score = "" if prediction.score is None else f"{prediction.score:.6g}"
        writer.writerow([prediction.text, "" if prediction.label is None else prediction.label, score])


# ---- inside ----------------------------------------------------------------------------------------------------------
def _text(source: str) -> str:
    if source == STDIN:
        raw = sys.stdin.buffer.read()
    else:
        path = Path(source)
        if not path.is_file():
            raise UsageError(f"`--file` must name a file, or - for standard input, but there is no {source}.")
        with disk_faults(path, "--file"):
            raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError(
            f"`--file` must be UTF-8, but line {line} of {_named(source)} is not.",
            hint="convert it, as with `iconv -f LATIN1 -t UTF-8`",
        ) from error


def _named(source: str) -> str:
    return "standard input" if source == STDIN else source


def _plain(source: str, text: str, columns: Sequence[str]) -> Iterator[Row]:
    if len(columns) > 1:
        raise UsageError(
            f"A row of this task has {', '.join(columns)}, but a line of {_named(source)} has one text.",
            hint="give a .csv with these columns, or a .jsonl with these keys",
        )
    return ((line,) for line in text.splitlines() if line.strip())


def _table(source: str, text: str, delimiter: str, columns: Sequence[str]) -> Iterator[Row]:
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # a text may be long
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        places = _places(source, header, columns)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                law = f"Each row must have the {len(header)} columns of the header"
                raise UsageError(
                    f"{law}, but the row that ends in line {reader.line_num} of {source} has {len(cells)}."
                )
            yield tuple(cells[place] for place in places)
    except csv.Error as error:
        raise UsageError(
            f"`--file` must be a table, but line {reader.line_num} of {source} is not: {error}."
        ) from error


def _places(source: str, header: Sequence[str], columns: Sequence[str]) -> list[int]:
    if len(columns) == len(header) == 1:
        return [0]
    for name in columns:
        if header.count(name) > 1:
            raise UsageError(f"A column must be there once, but {source} has {name!r} {header.count(name)} times.")
        if name not in header:
            message = unknown_name("column", name, header)
            raise UsageError(f"{source} lacks a column of the task. {message}", hint=f"it needs {', '.join(columns)}")
    return [header.index(name) for name in columns]


def _objects(source: str, text: str, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {source}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UsageError(f"Each line must be JSON, but {where} is not: {error}.") from error
        if isinstance(value, str) and len(columns) == 1:
            yield (value,)
        elif not isinstance(value, dict):
            raise UsageError(f"Each line must be an object with {', '.join(columns)}, but {where} is not.")
        elif missing := [name for name in columns if name not in value]:
            raise UsageError(f"{where} lacks a column of the task. {unknown_name('column', missing[0], value)}")
        else:
            yield tuple(value[name] for name in columns)
