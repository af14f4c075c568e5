"""What one value of a parameter must be, and the law of ranks. Without torch: a YAML file is checked against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from loraxs_search.errors import RankError, must_be, one_of
from loraxs_search.records.base import LinearModule
from loraxs_search.records.literals import ParameterKind, Scalar


@dataclass(frozen=True)
class ParameterSpec:
    """The law of a parameter.

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
        if self.kind == "flag":
            if not isinstance(value, bool):
                raise ValueError(f"must be {self}")
            return value
        if self.kind == "scalar":
            if not isinstance(value, str | int | float):
                raise ValueError(f"must be {self}")
            return value
        return self._number(value)

    def same(self, one: Scalar, other: Scalar) -> bool:
        """Whether two checked values mean the same."""
        return one == other

    def _number(self, value: object) -> Scalar:
        number = _as_float(value) if self.kind == "float" else value
        wanted = int if self.kind == "int" else float
        if isinstance(number, bool) or not isinstance(number, wanted):
            raise ValueError(f"must be {self}")
        # Written so that NaN, which compares as false, is refused; infinity is no value even where there is no limit.
        if not self.low <= number <= self.high or number == math.inf:
            raise ValueError(f"must be {self}")
        if (self.above and number == self.low) or (self.below and number == self.high):
            raise ValueError(f"must be {self}")
        return number


# `Method.not_offered` of those that have `rank` and `scale`.
NO_ALPHA = MappingProxyType(
    {"alpha": "is not offered, since with alpha fixed a larger rank learns slower; use `scale` (= alpha / rank)."}
)


def _as_float(value: object) -> object:
    # YAML 1.1 reads `1e-3` (no dot) as text; people mean the number. `True` is an int to Python, not to people, and
    # `1_6` is 16.
    if isinstance(value, bool) or not isinstance(value, int | float | str) or (isinstance(value, str) and "_" in value):
        return value
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def check_ranks(rank: int, modules: Sequence[LinearModule]) -> None:
    """Hold a rank against each layer's smaller side.

    Raises:
        RankError: it is above one of them, or below 1; the message names the layer that it fits least.
    """
    smallest = min(modules, key=lambda module: module.smaller_side)
    if not 1 <= rank <= smallest.smaller_side:
        raise RankError(
            f"`rank` must be in 1..{smallest.smaller_side}, but got rank={rank} for {smallest.name}.",
            hint="lower the rank, or leave this module out of target_modules",
        )
