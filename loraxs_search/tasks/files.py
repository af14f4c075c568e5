"""Local data files, read by the format that their ending names; rows of JSON, each with its line."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import logging
import lzma
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from loraxs_search.errors import shortened
from loraxs_search.tasks.rows import Columns, MalformedFileError, with_parents, with_parts

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}  # and how messages call them
_LISTED = 5
_QUOTES = 'a field that begins with a double quote ends with one, and has "" for each one in it'
_ON_PURPOSE = 0.1  # share of the rows of several lines that look like several rows; fewer are chance
_LONGEST_NAME = 10  # characters of a column's name in a script that writes no spaces: longer ones are sentences
_Row = tuple[int, int, list[str]]  # the lines in which a row begins and ends, and its fields
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
    rows, line, reader = list[_Row](), 1, _reader(text, separator, strict=True)
    names = list(names)
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
        return Columns(names, {}, [])
    if twice := [name for name in dict.fromkeys(wanted) if names.count(name) > 1]:
        raise MalformedFileError(
            f"must name each column once, but its header has {', '.join(map(repr, twice))} twice",
            hint="rename or remove one of the two: which one is meant cannot be known",
        )
    _check_swallowed(rows, len(names), separator)
    columns = [*wanted, *optional]
    places = [names.index(name) for name in columns]
    least = max(places[: len(wanted)])
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
    return Columns(names, dict(zip(columns, values, strict=True)), lines)


def shows(text: str, wanted: Sequence[str]) -> bool:
    """Whether a text begins with a header that has all of `wanted`."""
    return any(set(wanted) <= set(header(text, separator)) for separator in SEPARATORS)


def is_table(text: str) -> bool:
    """Whether a text begins with names, and all rows have as many fields, which are several, as few lines of prose."""
    separator = likely_separator(text, ",")
    names = header(text, separator)
    # A name is one word. A sentence of Chinese has no spaces either.
    are_names = all(name.isidentifier() and (name.isascii() or len(name) <= _LONGEST_NAME) for name in names)
    if len(names) < 2 or len(set(names)) < len(names) or not are_names:
        return False
    try:
        widths = [len(row) for row in _reader(text, separator) if row]
    except csv.Error:
        return False
    return len(widths) > 1 and set(widths) == {len(names)}


def header(text: str, separator: str) -> list[str]:
    """Return the names in the first line; empty where it cannot be read."""
    try:
        return [name.strip() for name in next(_reader(text, separator), [])]
    except csv.Error:
        return []


def _reader(text: str, separator: str, strict: bool = False) -> Any:
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


# ---- quotes that stand for themselves --------------------------------------------------------------------------------
def _check_swallowed(rows: Sequence[_Row], width: int, separator: str) -> None:
    """Refuse quotes that stand for themselves: each joins rows up to the next one.

    A file that has many texts of several lines was written with quotes on purpose: there a text may look like rows.

    Raises:
        MalformedFileError: the lines of a row are rows by themselves.
    """
    joined = [row for row in rows if row[1] > row[0]] if width > 1 else []
    if not joined:
        return
    plain = [fields for begin, end, fields in rows if begin == end and len(fields) >= width]
    # The values of each column that has few, such as labels; None of another one.
    repeated: list[frozenset[str] | None] = []
    for place in range(width):
        known = frozenset(fields[place].strip() for fields in plain)
        repeated.append(known if 2 * len(known) <= len(plain) else None)
    swallowing = [
        row
        for row in joined
        if any(_swallows(row[2], at, separator, repeated) for at in range(min(width, len(row[2]))))
    ]
    if swallowing and len(swallowing) >= _ON_PURPOSE * len(joined):
        begin, end, _ = swallowing[0]
        raise MalformedFileError(
            f"must close a quote in its row, but the one in line {begin} continues to line {end}, over lines that are"
            " rows by themselves",
            hint=f"{_QUOTES}; if these lines are one text, give the rows as .jsonl, where that is clear",
        )


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


log = logging.getLogger(__name__)

_BLANKS = re.compile(r"[ \t]+")  # a word may hold a space of another kind
_CONLL_COMMENT = re.compile(r"#[ \t]*(\w+ = |new(doc|par)\b)")  # `# text = ...` above a sentence
_HINT = "write one object a line, or all of them as one list"


def _read_json(text: str, wanted: Sequence[str]) -> Columns:
    """Read the keys `wanted` of every object; a missing key is None.

    Raises:
        MalformedFileError: something is no JSON, no object, or names a key twice.
    """
    lines, rows = list[int](), list[dict[str, Any]]()
    for line, item in _json_values(text):
        if not isinstance(item, dict):
            raise MalformedFileError(f"must hold objects, but line {line} has {shortened(item)}", hint=_HINT)
        lines.append(line)
        rows.append(item)
    available = dict.fromkeys(key for row in rows for key in row)
    values = {name: [row.get(name) for row in rows] for name in wanted if name in available}
    return Columns(list(available), values, lines)


def _json_values(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the line of each value and the value: one on each line, or those of one list."""
    decoder, line = json.JSONDecoder(object_pairs_hook=_object), 1
    try:
        if not text.lstrip().startswith("["):
            for line, content in enumerate(text.split("\n"), start=1):
                if content.strip():
                    yield line, json.loads(content, object_pairs_hook=_object)
            return
        spaces = re.compile(r"\s*")
        position, counted = text.index("[") + 1, 0  # what is read, and up to where its lines are counted
        while True:
            position = spaces.match(text, position).end()  # type: ignore[union-attr]
            line, counted = line + text.count("\n", counted, position), position
            if text[position : position + 1] == "]":
                break
            item, end = decoder.raw_decode(text, position)
            yield line, item
            position = spaces.match(text, end).end()  # type: ignore[union-attr]
            line, counted = line + text.count("\n", counted, position), position
            if text[position : position + 1] == ",":
                position += 1
            elif text[position : position + 1] != "]":
                raise ValueError("a list must continue with a comma, or end with ]")
        position = spaces.match(text, position + 1).end()  # type: ignore[union-attr]
        line += text.count("\n", counted, position)
        if position < len(text):
            raise ValueError("nothing may follow the list")
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        reason = "it is nested too deep" if isinstance(error, RecursionError) else reason
        raise MalformedFileError(f"must be JSON, but line {line} cannot be read: {reason}", hint=_HINT) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("an object names a key twice")
    return row


def _read_conll(text: str, wanted: Sequence[str]) -> Columns:
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
    return Columns(names, {name: values for name, values in columns.items() if name in wanted}, lines)


def _every_stream(make: Callable[[], Any], content: bytes) -> bytes:
    """Decompress a file of several streams; Python's own leaves out those behind a damaged one."""
    parts = list[bytes]()
    while content or not parts:
        stream = make()
        parts.append(stream.decompress(content))
        if not stream.eof:
            raise EOFError("it ends within a stream")
        content = stream.unused_data.lstrip(b"\0")  # xz pads with zeros
    return b"".join(parts)


_COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": partial(_every_stream, bz2.BZ2Decompressor),
    ".xz": partial(_every_stream, lzma.LZMADecompressor),
    ".zst": lambda content: bytes(pa.input_stream(pa.BufferReader(content), compression="zstd").read()),
}
_FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".conll")


def file_format(path: Path, also: Sequence[str] = ()) -> str:
    """Return the ending that names a file's format.

    Args:
        also: Endings that the caller reads beside those of data files.
    Raises:
        MalformedFileError: the format is unknown.
    """
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in _COMPRESSIONS]
    known = (*also, *_FORMATS)
    if not endings or endings[-1] not in known:
        raise MalformedFileError(
            f"must end in one of {', '.join(known)} (optionally compressed: {', '.join(_COMPRESSIONS)})",
            hint="convert it, or give it the ending of what it holds",
        )
    return endings[-1]


def has_rows(path: Path) -> bool:
    """Whether a file's name says that it is one of data."""
    with contextlib.suppress(MalformedFileError):
        return bool(file_format(path))
    return False


def read_columns(path: Path, content: bytes, wanted: Sequence[str], optional: Sequence[str] = ()) -> Columns:
    """Read columns of a file whose bytes are `content`; where values nest, also parts of them, as `choices.text`.

    Args:
        optional: Columns that a row may lack.
    Raises:
        MalformedFileError: it is not what its ending says.
    """
    content = unpacked(path, content)
    ending, every = file_format(path), with_parents([*optional, *wanted])
    if ending == ".parquet":
        return with_parts(_read_parquet(content, every), wanted)
    text, _ = decoded(content)
    if ending in (".csv", ".tsv"):
        return read_csv(text, "\t" if ending == ".tsv" else ",", wanted, optional)
    if ending == ".conll":
        return _read_conll(text, every)
    return with_parts(_read_json(text, every), wanted)


def unpacked(path: Path, content: bytes) -> bytes:
    """Return what a file holds, decompressed where its ending says that it is compressed.

    Raises:
        MalformedFileError: it is not compressed as it says.
    """
    decompress = _COMPRESSIONS.get(path.suffix.lower())
    if decompress is None:
        return content
    try:
        return decompress(content)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, pa.ArrowException) as error:
        raise MalformedFileError(
            f"must be compressed as {path.suffix} says, but: {error}", hint="compress it again, or rename it"
        ) from error


def decoded(content: bytes) -> tuple[str, str]:
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


def warn_of_encoding(path: Path, content: bytes) -> None:
    """Say that a file of text is read in another encoding than UTF-8; one that cannot be read is refused elsewhere."""
    if path.suffix.lower() != ".parquet":
        with contextlib.suppress(MalformedFileError):
            if encoding := decoded(unpacked(path, content))[1]:
                log.warning("%s is read as %s, since it is not UTF-8", path.name, encoding)


def _read_parquet(content: bytes, wanted: Sequence[str]) -> Columns:
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(pa.BufferReader(content))
        present = [name for name in wanted if name in schema.names]
        if twice := [name for name in present if schema.names.count(name) > 1]:
            raise MalformedFileError(
                f"must name each column once, but has {', '.join(map(repr, twice))} twice", hint="rename one of the two"
            )
        table = parquet.read_table(pa.BufferReader(content), columns=present)
        values = {name: table.column(name).to_pylist() for name in present}
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise MalformedFileError(f"must be a Parquet file, but: {reason}", hint="write it again") from error
    return Columns(list(schema.names), values, stored_names=_label_names(schema, wanted[-1]))


def label_names(path: Path, label: str, content: bytes | None = None) -> list[str] | None:
    """Return the names that `datasets` has written into a Parquet file for a label column's ids; None without any.

    Raises:
        MalformedFileError: it is not compressed as it says.
    """
    if file_format(path) != ".parquet":
        return None
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path if content is None else pa.BufferReader(unpacked(path, content)))
    except (pa.ArrowException, OSError):  # said when it is read
        return None
    return _label_names(schema, label)


def _label_names(schema: pa.Schema, label: str) -> list[str] | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        column = features[label]
        names = column.get("feature", column)["names"]  # of a list, those of its items
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return [str(name) for name in names]
