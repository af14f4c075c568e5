"""The entries of a seam by name (the package's own, those registered here, those of distributions), and their keys."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from loraxs_search.errors import UsageError, must_be, one_of, unknown_name
from loraxs_search.records.codec import ParameterKind, Scalar

EntryT = TypeVar("EntryT")


@dataclass(frozen=True)
class ParameterSpec:
    """A key that a method, a scheduler or a sampler declares: its law, its default, and what it does.

    Args:
        kind: `int`, `float`, `flag` (true or false), `name` (one of `names`), `scalar` (any of these, or a text), or
            `modules` (the search space's own).
        default: Its value where a space leaves it out; None means that a space must give one, unless `optional`.
        low: Least value; itself allowed unless `above`.
        high: Largest value; itself allowed unless `below`.
        names: The words allowed, for a parameter of kind `name`.
        about: What it does, for search_spaces/REFERENCE.md and the JSON Schema.
    """

    kind: ParameterKind
    low: float = 0.0
    above: bool = False
    high: float = math.inf
    below: bool = False
    names: tuple[str, ...] = ()
    default: Scalar | None = None
    optional: bool = False
    about: str = field(default="", compare=False)

    @property
    def is_required(self) -> bool:
        """Whether a space must give a value."""
        return self.default is None and not self.optional

    def __str__(self) -> str:
        if self.kind == "name":
            return f"one of: {one_of(self.names)}"
        if self.kind in ("flag", "scalar"):
            return "true or false" if self.kind == "flag" else "a text, a number, true or false"
        noun = "an integer" if self.kind == "int" else "a number"
        if self.below:
            return f"{noun} of at least {self.low:g} and below {self.high:g}"
        if self.high < math.inf:
            return f"{noun} in {self.low:g}..{self.high:g}"
        if self.low > -math.inf:
            noun += f" above {self.low:g}" if self.above else f" of at least {self.low:g}"
        return noun

    def check(self, value: object) -> Scalar:
        """Return `value` in the parameter's own type.

        Raises:
            ValueError: it breaks the law; the message states the law.
        """
        if self.kind == "name":
            if value not in self.names:
                raise ValueError(must_be(value, self.names))
            return str(value)
        if isinstance(value, str | int | float):
            if self.kind == "scalar" or (self.kind == "flag" and isinstance(value, bool)):
                return value
            # YAML 1.1 reads `1e-3` (no dot) as text; people mean the number. `True` is an int to Python, not to people,
            # and `1_6` is 16.
            if self.kind == "float" and not isinstance(value, bool) and "_" not in str(value):
                with contextlib.suppress(ValueError, OverflowError):
                    value = float(value)
            is_its_own = isinstance(value, int) == (self.kind == "int") and self.kind in ("int", "float")
            if is_its_own and not isinstance(value, bool | str):
                # Written so that NaN, which compares as false, is refused; infinity is no value even without a limit.
                within = self.low <= value <= self.high and value != math.inf
                if within and not (self.above and value == self.low) and not (self.below and value == self.high):
                    return value
        raise ValueError(f"must be {self}")

    def same(self, one: Scalar, other: Scalar) -> bool:
        """Whether two checked values mean the same."""
        return one == other


def with_defaults(specs: Mapping[str, ParameterSpec], given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return a value for each key, those left out at their defaults, in the order of the declaration."""
    values = {name: given.get(name, spec.default) for name, spec in specs.items()}
    return {name: value for name, value in values.items() if value is not None}


class EntryPoints(Generic[EntryT]):
    """What is known under which name. Reading is safe from any thread; `register` belongs to a program's start.

    A distribution adds an entry by an entry point: its name, and the object that it loads. The package's own names
    cannot be taken. Distributions are looked at once, when a name is first asked for.

    Args:
        kind: What an entry is called in messages.
        group: Of the entry points.
        built_in: The package's own entries, classes with a `name`.
    """

    def __init__(self, kind: str, group: str, *built_in: EntryT) -> None:
        self._kind, self._group = kind, group
        self._entries: dict[str, EntryT] = {entry.name: entry for entry in built_in}  # type: ignore[attr-defined]

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
        if name in self._entries:
            return self._entries[name]
        if (point := self._installed.get(name)) is None:
            raise UsageError(unknown_name(self._kind, name, self.names()))
        try:
            entry: EntryT = point.load()
        except Exception as error:  # a module runs whatever its author wrote
            raise UsageError(
                f"`{self._kind}` {name} must be importable from {point.value}, but: {type(error).__name__}: {error}.",
                hint=f"install the distribution that brings it anew, or use one of: {', '.join(self._entries)}",
            ) from error
        return self._entries.setdefault(name, entry)

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
