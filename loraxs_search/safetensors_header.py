"""What a safetensors file says of itself, read without the library, torch or numpy.

The file begins with the length of a JSON header in 8 bytes, little-endian, and the header; its `__metadata__` maps
strings to strings. We keep one entry there, itself JSON, since safetensors writes several in no fixed order.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, BinaryIO

MAX_BYTES = 100 * 10**6  # the library's own limit on a header


def entry_of(source: Path | bytes, name: str) -> Any:
    """Return an entry of a file's metadata, as the JSON that it holds.

    Args:
        source: A file, of which no more than the header is read, or all bytes of one.
    Raises:
        ValueError: it is no safetensors file, or its metadata has no such entry.
        OSError: it cannot be read.
    """
    if isinstance(source, bytes):
        return _entry(io.BytesIO(source), name)
    with source.open("rb") as file:
        return _entry(file, name)


def _entry(file: BinaryIO, name: str) -> Any:
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_BYTES:
        raise ValueError(f"its header must have at most {MAX_BYTES:,} bytes, but has {length:,}")
    header = json.loads(file.read(length))
    try:
        return json.loads(header["__metadata__"][name])
    except (KeyError, TypeError):
        raise ValueError(f"its metadata must have an entry {name!r}, but has none") from None
