"""Rows of a JSON file, each with its line: one object a line, or a list of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from loraxs_search.errors import shortened
from loraxs_search.tasks._columns import Columns, MalformedFileError

_SPACE = re.compile(r"\s*")
_HINT = "write one object a line, or all of them as one list"


def read_json(text: str, wanted: Sequence[str]) -> Columns:
    """Read the keys `wanted` of every object; one that lacks a key has None there.

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
                raise ValueError("a list must go on with a comma, or end with ]")
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
