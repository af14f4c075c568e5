"""Faults of a space file: each has a location, and all are reported at once, in file order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from loraxs_search.errors import SpaceError, asking, must_be, one_of

__all__ = [
    "Fault",
    "Faults",
    "KeyPath",
    "SourceLocation",
    "asking",
    "dotted",
    "fail_with",
    "location_of",
    "must_be",
    "one_of",
    "shown",
]

KeyPath = tuple[str | int, ...]
_BEHIND_FILES = 1_000_000_000  # no file has so many lines
_CHECK = "`loraxs-search check FILE` looks at a space without searching it"


@dataclass(frozen=True, order=True)
class SourceLocation:
    """Where a value was written: `order` sorts locations in reading order, `text` names one for people."""

    order: tuple[int, int]
    text: str

    @classmethod
    def of_override(cls, index: int, override: str) -> SourceLocation:
        """Return where a `--set` stands: behind the whole file, in the order given."""
        return cls((_BEHIND_FILES, index), f"--set {override}")

    @property
    def is_override(self) -> bool:
        return self.order[0] == _BEHIND_FILES


@dataclass(frozen=True)
class Fault:
    """One broken rule: its key, and a sentence with the rule and the value.

    Args:
        location: Where the value was written; None means at the key.
    """

    path: KeyPath
    message: str
    location: SourceLocation | None = None


class Faults(list[Fault]):
    """Collects faults while a space is read, so that one error can report all of them."""

    def add(self, path: KeyPath, message: str, location: SourceLocation | None = None) -> None:
        self.append(Fault(path, message, location))

    def at_or_below(self, path: KeyPath) -> bool:
        """Whether something at `path` or inside it is already known to be wrong."""
        return any(fault.path[: len(path)] == path for fault in self)

    def fail(self, source: str, locations: Mapping[KeyPath, SourceLocation], hint: str = _CHECK) -> NoReturn:
        """Raise one `SpaceError` with every fault on its own line."""
        located = sorted({(f.location or location_of(locations, f.path), dotted(f.path), f.message) for f in self})
        lines = [
            ": ".join(part for part in (location.text, key, message) if part) for location, key, message in located
        ]
        fail_with(source, lines, hint=hint)


def fail_with(source: str, lines: Iterable[str], *, hint: str | None = None) -> NoReturn:
    """Raise `SpaceError` listing `lines`, one fault each."""
    faults = list(lines)
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise SpaceError("\n".join([f"{source} has {count}:", *faults]), hint=hint)


def location_of(locations: Mapping[KeyPath, SourceLocation], path: KeyPath) -> SourceLocation:
    """Return the location of `path`, or of the nearest key around it that was written down."""
    for length in range(len(path), -1, -1):
        if path[:length] in locations:
            return locations[path[:length]]
    return SourceLocation((0, 0), "")


def dotted(path: KeyPath) -> str:
    """Return a key path as people write it: `parameters.rank.choice[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def shown(value: object) -> str:
    """Return a value as it would be written in the file, shortened when it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
