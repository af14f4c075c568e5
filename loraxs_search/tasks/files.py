"""Rows of local files, read by the format that their ending names, each with its line; and questions to an adapter.

Questions stand in a file, or come from standard input. They are read as training data are, with an adapter's columns.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import logging
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from loraxs_search.errors import UsageError, meant, shortened
from loraxs_search.home import disk_faults, meant_file
from loraxs_search.tasks.rows import (
    DATA_ENDINGS,
    TEXT_NAMES,
    Columns,
    MalformedFileError,
    SourceLocation,
    with_parents,
    with_parts,
)

log = logging.getLogger(__name__)

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}  # and how messages call them
READ_AS = "%s is read as %s, since it is not UTF-8"
_LISTED = 5
_QUOTES = 'a field that begins with a double quote ends with one, and has "" for each one in it'
_LONGEST_NAME = 10  # characters of a column's name in a script that writes no spaces: longer ones are sentences
_LOOKED_AT = 200  # lines that the separator is guessed from


def _read_csv(text: str, usual: str, wanted: Sequence[str], optional: Sequence[str] | None) -> Columns:
    """Read columns of separated values; every value stays text, as written. See `read_columns`.

    Lines without anything in them are skipped. Where a column is missing, no row is read.

    Args:
        usual: What separates values, unless another separator shows all of `wanted` in the header.
    Raises:
        MalformedFileError: a name that stands twice in the header, a row with fields too many or too few, or a quote
            that is not closed.
    """
    shown = (each for each in (usual, *SEPARATORS) if wanted and set(wanted) <= set(_header(text, each)))
    separator = next(shown, None) or _likely_separator(text, usual)
    rows, names = list[tuple[int, int, list[str]]](), list[str]()  # the lines in which a row begins and ends
    line, reader = 1, _reader(text, separator, strict=True)
    try:
        for fields in reader:
            begin, line = line, reader.line_num + 1
            if not any(field.strip() for field in fields):
                continue
            if names:
                rows.append((begin, line - 1, fields))
                continue
            names = [name.strip() for name in fields]
            if not set(wanted) <= set(names):
                break
    except csv.Error as error:
        raise MalformedFileError(
            f"must be separated values, but the row in line {line} cannot be read: {error}", hint=_QUOTES
        ) from error
    if not set(wanted) <= set(names):
        return Columns(names, {}, [], separator=separator)
    if twice := [name for name in dict.fromkeys(wanted) if names.count(name) > 1]:
        raise MalformedFileError(
            f"must name each column once, but its header has {', '.join(map(repr, twice))} twice",
            hint="rename or remove one of the two: which one is meant cannot be known",
        )
    _check_quotes(rows, len(names), separator)
    others = dict.fromkeys(names if optional is None else optional)
    columns = [*wanted, *(name for name in others if name in names and name not in wanted)]
    places = [names.index(name) for name in columns]
    least = max(places[: len(wanted)], default=-1)
    lines, values, wrong = list[int](), [list[str]() for _ in columns], list[str]()
    for line, _, fields in rows:
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
    return Columns(names, dict(zip(columns, values, strict=True)), lines, separator=separator)


def _check_quotes(rows: Sequence[tuple[int, int, list[str]]], width: int, separator: str) -> None:
    """Refuse a quote that stands for itself and so joins rows up to the next one.

    Then the lines of a field are rows by themselves: each has as many separators as the header and, in columns of few
    values, such as labels, known ones. Where many texts have several lines, one that looks so was meant.

    Raises:
        MalformedFileError: there is one.
    """
    joined = [row for row in rows if row[1] > row[0]] if width > 1 else []
    plain = [fields for begin, end, fields in rows if begin == end and len(fields) >= width] if joined else []
    values = [{fields[at].strip() for fields in plain} for at in range(width)]
    few = {at: own for at, own in enumerate(values) if 2 * len(own) <= len(plain)}

    def are_rows(fields: list[str], at: int) -> bool:
        lines = [line.split(separator) for line in fields[at].splitlines()]
        if len(lines) < 2:
            return False
        lines[0], lines[-1] = [*fields[:at], *lines[0]], [*lines[-1], *fields[at + 1 :]]
        known = [  # of each line: whether its values in columns of few are among these
            [it.strip() in few[i] for i, it in enumerate(line) if i in few and i != at and it.strip()] for line in lines
        ]
        return {*map(len, lines)} == {width} and all(map(all, known)) and (separator == "\t" or all(known))

    swallowing = [row for row in joined if any(are_rows(row[2], at) for at in range(len(row[2])))]
    if swallowing and 10 * len(swallowing) >= len(joined):
        begin, end, _ = swallowing[0]
        raise MalformedFileError(
            f"must close a quote in its row, but the one in line {begin} continues to line {end}, over lines that are"
            " rows by themselves",
            hint=f"{_QUOTES}; if these lines are one text, give the rows as .jsonl, where that is clear",
        )


def _is_table(text: str, wanted: Sequence[str]) -> bool:
    """Whether a text begins with a header that has all of `wanted`; or with other names, and all rows have as many
    fields, which are several, as few lines of prose."""
    if any(set(wanted) <= set(_header(text, separator)) for separator in SEPARATORS):
        return True
    separator = _likely_separator(text, ",")
    names = _header(text, separator)
    # A name is one word. A sentence of Chinese has no spaces either.
    are_names = all(name.isidentifier() and (name.isascii() or len(name) <= _LONGEST_NAME) for name in names)
    if len(names) < 2 or len(set(names)) < len(names) or not are_names:
        return False
    try:
        widths = [len(row) for row in _reader(text, separator) if row]
    except csv.Error:
        return False
    return len(widths) > 1 and set(widths) == {len(names)}


def _header(text: str, separator: str) -> list[str]:
    """Return the names in the first line; empty where it cannot be read."""
    try:
        return [name.strip() for name in next(_reader(text, separator), [])]
    except csv.Error:
        return []


def _reader(text: str, separator: str, strict: bool = False) -> Any:
    csv.field_size_limit(sys.maxsize)  # of the process: a text may be longer than csv's 128 KiB
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)


def _likely_separator(text: str, usual: str) -> str:
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


_BLANKS = re.compile(r"[ \t]+")  # a word may hold a space of another kind
_CONLL_COMMENT = re.compile(r"#[ \t]*(\w+ = |new(doc|par)\b)")  # `# text = ...` above a sentence
_ONE_A_LINE = "write one object a line, or all of them as one list"


def _read_json(text: str, wanted: Sequence[str] | None) -> Columns:
    """Read these keys of every object, or all keys; a missing one is None.

    Objects stand on a line each, or all of them in one list.

    Raises:
        MalformedFileError: something is no JSON, no object, or names a key twice.
    """
    decoder, spaces = json.JSONDecoder(object_pairs_hook=_object), re.compile(r"\s*")
    line, counted, items = 1, 0, list[tuple[int, Any]]()

    def behind_spaces(position: int) -> int:
        nonlocal line, counted  # the line, and up to where lines are counted
        end: int = spaces.match(text, position).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, end), end
        return end

    try:
        if not text.lstrip().startswith("["):
            for line, content in enumerate(text.split("\n"), start=1):
                if content.strip():
                    items.append((line, decoder.decode(content)))
        else:
            position = behind_spaces(text.index("[") + 1)
            while text[position : position + 1] != "]":
                item, end = decoder.raw_decode(text, position)
                items.append((line, item))
                position = behind_spaces(end)
                if text[position : position + 1] == ",":
                    position = behind_spaces(position + 1)
                elif text[position : position + 1] != "]":
                    raise ValueError("a list must continue with a comma, or end with ]")
            if behind_spaces(position + 1) < len(text):
                raise ValueError("nothing may follow the list")
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        reason = "it is nested too deep" if isinstance(error, RecursionError) else reason
        raise MalformedFileError(f"must be JSON, but line {line} cannot be read: {reason}", hint=_ONE_A_LINE) from error
    for line, item in items:
        if not isinstance(item, dict):
            raise MalformedFileError(f"must hold objects, but line {line} has {shortened(item)}", hint=_ONE_A_LINE)
    available = list(dict.fromkeys(key for _, row in items for key in row))
    chosen = [name for name in available if wanted is None or name in wanted]
    return Columns(available, {name: [row.get(name) for _, row in items] for name in chosen}, [it[0] for it in items])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("an object names a key twice")
    return row


def _read_conll(text: str, wanted: Sequence[str] | None) -> Columns:
    """Read sentences with a word and its tags on each line, and an empty line after each sentence.

    The first column is called `tokens`, the last one `tags`, those between by their numbers from 2.

    Raises:
        MalformedFileError: a line has more or fewer columns than the first one.
    """
    lines, sentences, inside = list[int](), list[list[list[str]]](), False
    for line, content in enumerate(text.split("\n"), start=1):
        fields = _BLANKS.split(content.strip(" \t\r"))
        if fields[0] in ("", "-DOCSTART-"):
            inside = False
        elif not _CONLL_COMMENT.match(content):
            if not inside:
                lines.append(line)
                sentences.append([])
                inside = True
            sentences[-1].append(fields)
            if len(fields) != (width := len(sentences[0][0])):
                raise MalformedFileError(
                    f"must have as many columns in each line as in line {lines[0]}, {width}, but line {line} has"
                    f" {len(fields)}",
                    hint="write a word and its tag on each line, and an empty line after each sentence",
                )
    width = len(sentences[0][0]) if sentences else 2
    names = ["tokens", *map(str, range(2, width)), "tags"][:width]
    columns = {name: [[word[place] for word in own] for own in sentences] for place, name in enumerate(names)}
    return Columns(names, {name: it for name, it in columns.items() if wanted is None or name in wanted}, lines)


_COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".zst": lambda content: bytes(pa.input_stream(pa.BufferReader(content), compression="zstd").read()),
}


def file_format(path: Path, also: Sequence[str] = ()) -> str:
    """Return the ending that names a file's format.

    Args:
        also: Endings that the caller reads beside those of data files.
    Raises:
        MalformedFileError: the format is unknown.
    """
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in _COMPRESSIONS]
    known = (*also, *DATA_ENDINGS)
    if not endings or endings[-1] not in known:
        raise MalformedFileError(
            f"must end in one of {', '.join(known)} (optionally compressed: {', '.join(_COMPRESSIONS)})",
            hint="convert it, or give it the ending of what it holds",
        )
    return endings[-1]


def read_columns(
    path: Path,
    content: bytes,
    wanted: Sequence[str],
    optional: Sequence[str] | None = (),
) -> Columns:
    """Read columns of a file whose bytes are `content`; where values nest, also parts of them, as `choices.text`.

    Args:
        optional: Columns that the file or a row of it may lack; None for all others. Separated values that a row lacks
            are empty.
    Raises:
        MalformedFileError: it is not what its ending says.
    """
    content, ending = _unpacked(path, content), file_format(path)
    every = None if optional is None else with_parents([*optional, *wanted])
    if ending == ".parquet":
        return with_parts(_read_parquet(content, every, wanted), wanted)
    text, encoding = _decoded(content)
    if ending in (".csv", ".tsv"):
        columns = _read_csv(text, "\t" if ending == ".tsv" else ",", wanted, optional)
    elif ending == ".conll":
        columns = _read_conll(text, every)
    else:
        columns = with_parts(_read_json(text, every), wanted)
    return replace(columns, encoding=encoding)


def _unpacked(path: Path, content: bytes) -> bytes:
    decompress = _COMPRESSIONS.get(path.suffix.lower())
    if decompress is None:
        return content
    try:
        return decompress(content)
    except (OSError, EOFError, zlib.error, ValueError, pa.ArrowException) as error:
        raise MalformedFileError(
            f"must be compressed as {path.suffix} says, but: {error}", hint="compress it again, or rename it"
        ) from error


def _decoded(content: bytes) -> tuple[str, str]:
    """Return the text that a file holds, and its encoding where that is not UTF-8: Windows-1252 or UTF-16.

    Raises:
        MalformedFileError: it is damaged UTF-8, or has zero bytes, as UTF-16 without its mark has.
    """
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            return content.decode("utf-16"), "UTF-16"
        if b"\0" not in content:
            return content.decode("utf-8-sig"), ""
        wrong = content.index(b"\0")
    except UnicodeDecodeError as error:
        wrong = error.start
        # Text with whole characters of UTF-8 is not Windows-1252; few bytes stand for nothing there.
        if error.encoding == "utf-8" and content.decode("utf-8", "ignore").isascii():
            with contextlib.suppress(UnicodeDecodeError):
                return content.decode("cp1252"), "Windows-1252"
    line = content.count(b"\n", 0, wrong) + 1
    raise MalformedFileError(
        f"must be text in UTF-8, but line {line} has the byte 0x{content[wrong]:02x}", hint="save it as UTF-8"
    )


def _read_parquet(content: bytes, chosen: Sequence[str] | None, wanted: Sequence[str]) -> Columns:
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(pa.BufferReader(content))
        present = schema.names if chosen is None else [name for name in chosen if name in schema.names]
        if twice := [name for name in dict.fromkeys(present) if schema.names.count(name) > 1]:
            raise MalformedFileError(
                f"must name each column once, but has {', '.join(map(repr, twice))} twice", hint="rename one of the two"
            )
        table = parquet.read_table(pa.BufferReader(content), columns=present)
        values = {name: table.column(name).to_pylist() for name in present}
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise MalformedFileError(f"must be a Parquet file, but: {reason}", hint="write it again") from error
    names = label_names(pa.BufferReader(content), wanted[-1]) if wanted else None
    return Columns(list(schema.names), values, stored_names=names)


def label_names(file: Path | pa.BufferReader, column: str) -> list[str] | None:
    """Return the names that `datasets` has written into a Parquet file for a column's ids; None without any."""
    from pyarrow import parquet

    with contextlib.suppress(pa.ArrowException, OSError, KeyError, TypeError, ValueError, AttributeError):
        metadata = parquet.read_schema(file).metadata
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        return [str(name) for name in feature.get("feature", feature)["names"]]  # of a list, those of its items
    return None


# ---- questions -------------------------------------------------------------------------------------------------------
_TEXT = ".txt"
_STDIN = "standard input"


# Rows to be answered, each with the values of the adapter's columns; where they stand; all columns of the source in its
# order, where they were asked for.
_Questions = tuple[list[tuple[Any, ...]], SourceLocation, Mapping[str, Sequence[Any]]]


def read_questions(
    source: str, columns: Sequence[str], *, piped: bytes | None = None, whole: bool = False
) -> _Questions:
    """Return the rows of a file, each with these columns, their place, and the source's columns.

    Where both have only one column, its name is not asked for.

    Args:
        source: The path of a file that training data may stand in, or of a .txt with a text in each line, of which a
            blank one is an empty row; those at the end are none.
        piped: The bytes of standard input instead of a file: a text in each line, or JSONL or CSV where the first line
            shows it.
        whole: Whether the source's other columns are read too.
    Raises:
        UsageError: there is no such file, it cannot be read, lacks a column, or has no row.
        HomeError: the disk fails.
    """
    path, content, title = Path(_STDIN), piped or b"", ""
    if piped is None:
        path = Path(source).expanduser()
        if not source or not path.is_file():
            got = f"{source} is a folder" if source and path.is_dir() else f"there is no {source or repr(source)}"
            raise UsageError(
                f"{meant_file(path)}`--file` must name a file, or - for standard input, but {got}.",
                hint="download it first: only files of this machine are read" if "://" in source else _HINT,
            )
        with disk_faults(path, "--file"):
            content = path.read_bytes()
    else:
        source = _STDIN
    try:
        if piped is not None:
            text, _ = _decoded(content)
            first = next((line for line in text.split("\n") if line.strip()), "")
            name = first.strip().strip('"')  # the name of the one column, above lines of text
            title = name if len(columns) == 1 and (name.lower() in TEXT_NAMES or name == columns[0]) else ""
            ending = ".csv" if title or _is_table(text.lstrip(), columns) else _TEXT
            if first.startswith(("{", "[")):
                with contextlib.suppress(ValueError, RecursionError):
                    json.loads(first if first[0] == "{" else text)
                    ending = ".jsonl"
            path = Path(f"{_STDIN}{ending}")
        if file_format(path, (_TEXT,)) != _TEXT:
            try:
                return _read_table(path, content, source, columns, whole)
            except MalformedFileError:
                if not title:
                    raise
                log.warning(_NAMED, source, title)  # as `cut` writes a column: its texts stand in no quotes
        text, encoding = _decoded(_unpacked(path, content))
    except MalformedFileError as error:
        raise UsageError(f"`--file` {error.message}: {source}.", hint=error.hint) from error
    if encoding:
        log.warning(READ_AS, source, encoding)
    if len(columns) > 1:
        raise UsageError(
            f"A row of this task has {', '.join(columns)}, but a line of {source} has one text.",
            hint="give a .csv with these columns, or a .jsonl with these keys",
        )
    end = "\n" if "\n" in text else "\r"  # a lone return ends lines only where nothing else does, as on an old Mac
    lines = [line.rstrip("\r") for line in text.split(end)]
    full = [number for number, line in enumerate(lines) if line.strip()]
    # A blank line between others is an empty row: without it, answers would stand beside other rows.
    kept = range(full[0] + 1 if title else 0, full[-1] + 1) if full else range(0)
    texts = [lines[number] for number in kept]
    place = SourceLocation(source, [number + 1 for number in kept])
    return _question_rows({columns[0]: texts}, columns, place, {columns[0]: texts})


_NAMED = "%s: %r is read as the name of its column, not as a text"
_HINT = f"a .txt has a text in each line; one of {', '.join(DATA_ENDINGS)} has the columns that the task reads"


def _read_table(path: Path, content: bytes, source: str, columns: Sequence[str], whole: bool) -> _Questions:
    read = read_columns(path, content, columns, None if whole else ())
    names, values = read.available, dict(read.values)
    if len(names) == len(columns) == 1 and not values and names[0].strip():
        log.warning(_NAMED, source, names[0])
        read = read_columns(path, content, names)
        values = {columns[0]: read.values[names[0]]}
    if read.encoding:
        log.warning(READ_AS, source, read.encoding)
    for name in columns:
        if name not in values and any(other.strip() for other in names):
            near = meant(name, names)
            way = f"rename the column {near or 'of the texts'} to {name}"
            if not near and len(columns) == 1:
                way += ", or leave only that one: then its name does not matter"
            if source == _STDIN and len(columns) == 1:
                way += "; lines of text that look like a table are read as they are from a .txt"
            raise UsageError(
                f"{source} must have the column {name}, which the task reads, but has: {', '.join(names)}.", hint=way
            )
    parts = {name for name in columns if "." in name and name.partition(".")[0] in names}  # no columns of the file
    own = [name for name in names if name not in parts]
    if twice := [name for name in dict.fromkeys(own) if whole and own.count(name) > 1]:
        raise MalformedFileError(
            f"must name each column once where answers keep all, but has {', '.join(map(repr, twice))} twice",
            hint="rename or remove one of the two",
        )
    kept = {name: read.values[name] for name in own if name in read.values and (name or any(read.values[name]))}
    return _question_rows(values, columns, SourceLocation(source, read.lines), kept)


def _question_rows(
    values: Mapping[str, Sequence[Any]],
    columns: Sequence[str],
    place: SourceLocation,
    kept: Mapping[str, Sequence[Any]],
) -> _Questions:
    rows = list(zip(*(values.get(name, ()) for name in columns), strict=True))
    if not rows:
        raise UsageError(f"`--file` must have a row at least, but {place.name} has none.", hint=_HINT)
    return rows, place, kept
