"""Local data files, read by the format that their ending names."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from loraxs_search.tasks._columns import Columns, MalformedFileError, with_parents, with_parts
from loraxs_search.tasks._csv import read_csv
from loraxs_search.tasks._json import read_json


def _zstd(content: bytes) -> bytes:
    return bytes(pa.input_stream(pa.BufferReader(content), compression="zstd").read())


_COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _zstd,
}
_FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


def file_format(path: Path, also: Sequence[str] = ()) -> str:
    """Return the ending that names a file's format.

    Args:
        also: Endings that the caller reads beside those of data files.
    Raises:
        MalformedFileError: it is none that can be read.
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
    text = decoded(content)
    if ending in (".csv", ".tsv"):
        return read_csv(text, "\t" if ending == ".tsv" else ",", wanted, optional)
    return with_parts(read_json(text, every), wanted)


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


def decoded(content: bytes) -> str:
    """Return the text that a file holds.

    Raises:
        MalformedFileError: it is not in UTF-8, or has zero bytes, as UTF-16 has beside every Latin letter.
    """
    try:
        text = content.decode("utf-8-sig")
        wrong = content.find(b"\0")
    except UnicodeDecodeError as error:
        text, wrong = "", error.start
    if wrong < 0:
        return text
    is_utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content
    line = content.count(b"\n", 0, wrong) + 1
    name, encoding = ("UTF-16", "utf-16") if is_utf_16 else ("Latin-1", "latin1")
    raise MalformedFileError(
        f"must be text in UTF-8, but line {line} has the byte 0x{content[wrong]:02x}",
        hint=f"save it as UTF-8; `iconv -f {encoding} -t utf-8` does that to a file in {name}",
    )


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


def label_names(path: Path, content: bytes, label: str) -> list[str] | None:
    """Return the names that `datasets` has written into a Parquet file for a label column's ids; None without any.

    Raises:
        MalformedFileError: it is not compressed as it says.
    """
    if file_format(path) != ".parquet":
        return None
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(pa.BufferReader(unpacked(path, content)))
    except (pa.ArrowException, OSError):
        return None
    return _label_names(schema, label)


def _label_names(schema: pa.Schema, label: str) -> list[str] | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names]
