"""Local data files, read by the format that their ending names; rows of JSON, each with its line."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import logging
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from loraxs_search.errors import shortened
from loraxs_search.tasks.rows import Columns, MalformedFileError, with_parents, with_parts
from loraxs_search.tasks.separated import read_csv

log = logging.getLogger(__name__)

_SPACE = re.compile(r"\s*")
_BLANKS = re.compile(r"[ \t]+")  # a word may hold a space of another kind
_CONLL_COMMENT = re.compile(r"#[ \t]*(\w+ = |new(doc|par)\b)")  # `# text = ...` above a sentence
_HINT = "write one object a line, or all of them as one list"


def _read_json(text: str, wanted: Sequence[str]) -> Columns:
    """Read the keys `wanted` of every object; a missing key is None.

    Raises:
        MalformedFileError: something is no JSON, no object, or names a key twice.
    """
    lines, rows = list[int](), list[dict[str, Any]]()
    for line, item in _items(text) if text.lstrip().startswith("[") else _lines(text):
        if not isinstance(item, dict):
            raise MalformedFileError(f"must hold objects, but line {line} has {shortened(item)}", hint=_HINT)
        lines.append(line)
        rows.append(item)
    available = dict.fromkeys(key for row in rows for key in row)
    values = {name: [row.get(name) for row in rows] for name in wanted if name in available}
    return Columns(list(available), values, lines)


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                yield line, json.loads(content, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise _no_json(line, error) from error


def _items(text: str) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    position, line = 0, 1

    def skip(to: int) -> None:
        nonlocal position, line
        end = _SPACE.match(text, to).end()  # type: ignore[union-attr]
        line += text.count("\n", position, end)
        position = end

    skip(text.index("[") + 1)
    try:
        while text[position : position + 1] != "]":
            begin = line
            item, end = decoder.raw_decode(text, position)
            skip(end)
            yield begin, item
            if text[position : position + 1] == ",":
                skip(position + 1)
            elif text[position : position + 1] != "]":
                raise ValueError("a list must continue with a comma, or end with ]")
        skip(position + 1)
        if position < len(text):
            raise ValueError("nothing may follow the list")
    except (ValueError, RecursionError) as error:
        raise _no_json(line, error) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("an object names a key twice")
    return row


def _no_json(line: int, error: Exception) -> MalformedFileError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    if isinstance(error, RecursionError):
        reason = "it is nested too deep"
    return MalformedFileError(f"must be JSON, but line {line} cannot be read: {reason}", hint=_HINT)


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


def _zstd(content: bytes) -> bytes:
    return bytes(pa.input_stream(pa.BufferReader(content), compression="zstd").read())


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
    ".zst": _zstd,
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
