"""The entries of a seam by name: the package's own, those registered here, those of installed distributions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from loraxs_search.errors import UsageError, unknown_name
from loraxs_search.records.literals import Scalar

EntryT = TypeVar("EntryT")


@dataclass(frozen=True)
class SearchKey:
    """A key of a space's `search:` section that a scheduler or a sampler takes.

    Args:
        annotation: Its type and law as pydantic reads them, such as `Annotated[int, Field(ge=2)]`.
        default: Where the space does not give it.
        about: What it does, for search_spaces/REFERENCE.md and the JSON Schema.
    """

    annotation: Any
    default: Scalar
    about: str = ""


class EntryPoints(Generic[EntryT]):
    """What is known under which name. Reading is safe from any thread; `register` belongs to a program's start.

    A distribution adds an entry by an entry point: its name, and the object that it loads. The package's own names
    cannot be taken. Distributions are looked at once, when a name is first asked for.

    Args:
        kind: What an entry is called in messages.
        group: Of the entry points.
        built_in: The package's own entries.
    """

    def __init__(self, kind: str, group: str, built_in: Mapping[str, EntryT]) -> None:
        self._kind, self._group = kind, group
        self._entries = dict(built_in)

    def register(self, name: str, entry: EntryT) -> None:
        """Add an entry in this process; an entry point adds one in the processes of a whole cluster.

        Raises:
            ValueError: the name is taken by another entry.
        """
        if self._entries.setdefault(name, entry) is not entry:
            raise ValueError(f"`{self._kind}` must have its own name, but {name!r} is taken.")

    def names(self) -> list[str]:
        """Return all names: the package's own, then those registered here, then those of distributions."""
        return list(dict.fromkeys((*self._entries, *self._installed)))

    def get(self, name: str) -> EntryT:
        """Return the entry of a name; one of a distribution is imported now.

        Raises:
            UsageError: nothing has this name, or the distribution's object cannot be imported.
        """
        if name not in self._entries:
            self._entries[name] = self._load(name)
        return self._entries[name]

    def importable(self) -> dict[str, EntryT]:
        """Return all entries by name, but those that cannot be imported: they are refused where they are named."""
        entries: dict[str, EntryT] = {}
        for name in self.names():
            with contextlib.suppress(UsageError):
                entries[name] = self.get(name)
        return entries

    @cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self._group):
            points.setdefault(point.name, point)  # of two, the first on the path
        return points

    def _load(self, name: str) -> EntryT:
        point = self._installed.get(name)
        if point is None:
            raise UsageError(unknown_name(self._kind, name, self.names()))
        try:
            return point.load()  # type: ignore[no-any-return]
        except Exception as error:  # a module runs whatever its author wrote
            raise UsageError(
                f"`{self._kind}` {name} must be importable from {point.value}, but: {type(error).__name__}: {error}.",
                hint=f"install the distribution that brings it anew, or use one of: {', '.join(self._entries)}",
            ) from error
