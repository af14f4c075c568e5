"""What a safetensors file says of itself, read without the library, torch or numpy.

The file begins with the length of a JSON header in 8 bytes, little-endian, and the header; its `__metadata__` maps
strings to strings. We keep one entry there, itself JSON, since safetensors writes several in no fixed order.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any, BinaryIO

MAX_BYTES = 100 * 10**6  # the library's own limit on a header


def entry_of(source: Path | bytes, name: str) -> Any:
    """Return an entry of a file's metadata, as the JSON that it holds.

    Args:
        source: A file, of which only the header is read, or the bytes of one.
    Raises:
        ValueError: it is no safetensors file, or its metadata has no such entry.
        OSError: it cannot be read.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        header = _header(file)
    try:
        return json.loads(header["__metadata__"][name])
    except (KeyError, TypeError):
        raise ValueError(f"its metadata must have an entry {name!r}, but has none") from None


def numbers_by_dtype(path: Path) -> dict[str, int]:
    """Return how many numbers of each type a file's tensors have, by the type's name there (`BF16`, `F32`).

    Raises:
        ValueError: it is no safetensors file.
        OSError: it cannot be read.
    """
    numbers: dict[str, int] = {}
    with path.open("rb") as file:
        header = _header(file)
    for tensor in (value for name, value in header.items() if name != "__metadata__"):
        numbers[tensor["dtype"]] = numbers.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return numbers


def _header(file: BinaryIO) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_BYTES:
        raise ValueError(f"its header must have at most {MAX_BYTES:,} bytes, but has {length:,}")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"its header must be a mapping, but is {type(header).__name__}")
    return header
