"""`--set search.trials=24`: a dotted path and a YAML value, put in before anything is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from loraxs_search.search_space._distributions import METHOD
from loraxs_search.search_space._document import Document, forget, parse_value
from loraxs_search.search_space._faults import SourceLocation, shown
from loraxs_search.search_space._narrowing import narrow

Overrides = Sequence[str] | Mapping[str, Any]

_SHORTHANDS = {"task": "use", "base_model": "id"}  # `task: sst2` is `task: {use: sst2}`


def as_texts(overrides: Overrides) -> Sequence[str]:
    """Return overrides as the command line has them: values of a mapping as YAML."""
    if not isinstance(overrides, Mapping):
        return overrides
    return [f"{path}={_written(value)}" for path, value in overrides.items()]


def _written(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Put each override into the document's data; later ones win. Faults go to the document.

    Fewer methods than the file has leave out what it says of the others.
    """
    methods = document.data.get(METHOD) if isinstance(document.data, dict) else None
    for index, override in enumerate(overrides):
        location = SourceLocation.of_override(index, override)
        path, equals, text = override.partition("=")
        keys = tuple(path.strip().split("."))
        if not equals or not all(keys):
            document.faults.add((), f"must be path.to.key=value, but got {shown(override)}.", location)
        elif isinstance(document.data, dict):
            _put(document, keys, text, location)
    if isinstance(document.data, dict) and document.data.get(METHOD) != methods:
        narrow(document, methods)


def _put(document: Document, keys: tuple[str, ...], text: str, location: SourceLocation) -> None:
    parent: dict[str, Any] = document.data
    for depth, key in enumerate(keys[:-1], start=1):
        inner = parent.setdefault(key, {})
        if depth == 1 and isinstance(inner, str) and key in _SHORTHANDS:
            inner = parent[key] = {_SHORTHANDS[key]: inner}
        if not isinstance(inner, dict):
            message = f"must lead through keys, but {'.'.join(keys[:depth])} holds {shown(inner)}."
            document.faults.add(keys, message, location)
            return
        document.locations.setdefault(keys[:depth], location)
        parent = inner
    forget(document, keys)
    document.locations[keys] = location
    parent[keys[-1]] = parse_value(document, text, keys, location)
