"""Rows of local files, read by the format that their ending names, each with its line; and questions to an adapter.

Questions are given by callers, stand in a file, or come from standard input. Files of questions are read as training
data are, with an adapter's columns.
"""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from loraxs_search.errors import UsageError, meant, shortened
from loraxs_search.home import disk_faults, meant_file
from loraxs_search.tasks.rows import TEXT_NAMES, Columns, MalformedFileError, SourceLocation, with_parents, with_parts

log = logging.getLogger(__name__)

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}  # and how messages call them
_LISTED = 5
_QUOTES = 'a field that begins with a double quote ends with one, and has "" for each one in it'
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
    rows, names = list[tuple[int, int, list[str]]](), list(names)  # the lines in which a row begins and ends
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
        return Columns(names, {}, [])
    if twice := [name for name in dict.fromkeys(wanted) if names.count(name) > 1]:
        raise MalformedFileError(
            f"must name each column once, but its header has {', '.join(map(repr, twice))} twice",
            hint="rename or remove one of the two: which one is meant cannot be known",
        )
    _check_quotes(rows, len(names), separator)
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
    if any(set(wanted) <= set(header(text, separator)) for separator in SEPARATORS):
        return True
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


def _every_stream(make: Callable[[], Any]) -> Callable[[bytes], bytes]:
    """Return what decompresses a file of several streams; Python's own leaves out those behind a damaged one."""

    def decompress(content: bytes) -> bytes:
        parts = list[bytes]()
        while content or not parts:
            stream = make()
            parts.append(stream.decompress(content))
            if not stream.eof:
                raise EOFError("it ends within a stream")
            content = stream.unused_data.lstrip(b"\0")  # xz pads with zeros
        return b"".join(parts)

    return decompress


_COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": _every_stream(bz2.BZ2Decompressor),
    ".xz": _every_stream(lzma.LZMADecompressor),
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
    return Columns(list(schema.names), values, stored_names=label_names(pa.BufferReader(content), wanted[-1]))


def label_names(file: Path | pa.BufferReader, column: str) -> list[str] | None:
    """Return the names that `datasets` has written into a Parquet file for a column's ids; None without any."""
    from pyarrow import parquet

    with contextlib.suppress(pa.ArrowException, OSError, KeyError, TypeError, ValueError, AttributeError):
        metadata = parquet.read_schema(file).metadata
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        return [str(name) for name in feature.get("feature", feature)["names"]]  # of a list, those of its items
    return None


# ---- questions -------------------------------------------------------------------------------------------------------
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
    is_list = hasattr(texts, "__len__") and hasattr(texts, "__getitem__") and not isinstance(texts, bytes | Mapping)
    if not is_list or hasattr(texts, "columns"):  # a table lists the names of its columns
        raise UsageError(
            f"`{name}` must be a text or a list of texts, but got {type(texts).__name__}.",
            hint='give ["one text", "another"], a pandas DataFrame, or a row of several texts as a tuple',
        )
    return list(texts)


_TEXT = ".txt"
_STDIN = "standard input"


@dataclass(frozen=True)
class _QuestionRows:
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


def read_questions(source: str, columns: Sequence[str], *, whole: bool = False) -> _QuestionRows:
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


def read_standard_input(content: bytes, columns: Sequence[str], *, whole: bool = False) -> _QuestionRows:
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
        if is_named or _is_table(text.lstrip(), columns):
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


def _read_table(path: Path, content: bytes, source: str, columns: Sequence[str], whole: bool) -> _QuestionRows:
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


def _lines(text: str, source: str, columns: Sequence[str], *, skip: bool = False) -> _QuestionRows:
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


def _of_columns(read: Columns, source: str, columns: Sequence[str]) -> _QuestionRows:
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


def _some(rows: list[tuple[Any, ...]], place: SourceLocation) -> _QuestionRows:
    if not rows:
        raise UsageError(f"`--file` must have a row at least, but {place.name} has none.", hint=_HINT)
    return _QuestionRows(rows, place)
