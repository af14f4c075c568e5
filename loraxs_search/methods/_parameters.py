"""What one value of a parameter must be, and the laws of ranks. Read without torch: a YAML file is checked against it.

A rank is no larger than the smaller side of a layer. A pattern of ranks gives some layers more and others less, with no
more numbers in R than one rank for all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt, sqrt
from typing import Literal

from loraxs_search.errors import RankError, must_be, one_of
from loraxs_search.records import LinearModule, Scalar


@dataclass(frozen=True)
class ParameterSpec:
    """The law of a parameter.

    Args:
        kind: `int`, `float`, `flag` (true or false), `name` (one of `names`), or `modules` (the search space's own).
        default: Its value where a space leaves it out; None means that a space must give one.
        low: Least value; itself allowed unless `above`.
        high: Largest value; itself allowed unless `below`.
        names: The words allowed, for a parameter of kind `name`.
        stored: Words that only studies of earlier versions have.
        about: What it does, for search_spaces/REFERENCE.md and the JSON Schema.
    """

    kind: Literal["int", "float", "flag", "name", "modules"]
    low: float = 0.0
    above: bool = False
    high: float = math.inf
    below: bool = False
    names: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    default: Scalar | None = None
    about: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.kind == "name":
            return f"one of: {one_of(self.names)}"
        if self.kind == "flag":
            return "true or false"
        noun = "an integer" if self.kind == "int" else "a number"
        if self.below:
            return f"{noun} of at least {self.low:g} and below {self.high:g}"
        if self.high < math.inf:
            return f"{noun} in {self.low:g}..{self.high:g}"
        return f"{noun} above {self.low:g}" if self.above else f"{noun} of at least {self.low:g}"

    def check(self, value: object) -> Scalar:
        """Return `value` in the parameter's own type.

        Raises:
            ValueError: it breaks the law; the message states the law.
        """
        if self.kind == "name":
            if value not in (*self.names, *self.stored):
                raise ValueError(must_be(value, self.names))
            return str(value)
        if self.kind == "flag":
            if not isinstance(value, bool):
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


def _as_float(value: object) -> object:
    # YAML 1.1 reads `1e-3` (no dot) as text; people mean the number. `True` is an int to Python, not to people, and
    # `1_6` is 16.
    if isinstance(value, bool) or not isinstance(value, int | float | str) or (isinstance(value, str) and "_" in value):
        return value
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def check_ranks(ranks: int | Mapping[str, int], modules: Sequence[LinearModule]) -> None:
    """Hold each layer's rank against its smaller side.

    Args:
        ranks: One for all layers, or by name.
    Raises:
        RankError: it is above one of them, or below 1; the message names the layer that it fits least.
    """
    own = {module.name: ranks if isinstance(ranks, int) else ranks[module.name] for module in modules}
    smallest = min(modules, key=lambda module: module.smaller_side - own[module.name])
    rank = own[smallest.name]
    if not 1 <= rank <= smallest.smaller_side:
        raise RankError(
            f"`rank` must be in 1..{smallest.smaller_side}, but got rank={rank} for {smallest.name}.",
            hint="lower the rank, or leave this module out of target_modules",
        )


_LEAST = 3  # of a smaller rank there is no more to give that would leave one to each of the others
_SHARE = sqrt(1.5)  # half of the layers get three quarters of the numbers


def module_ranks(rank: int, pattern: str, names: Sequence[str]) -> dict[str, int]:
    """Return the rank of each of these modules.

    `uniform` gives all the same. The others give half of the layers about rank * sqrt(1.5), so that these hold three
    quarters of the numbers of R, and the rest as much as is left of n * rank^2. A layer is a block of the base, by the
    first number in a module's name. `upper` means those nearest to the output, `lower` to the input; `middle` the half
    around the centre, `ends` the other half. With one layer, or a rank below 3, all are `uniform`.
    """
    ranks = dict.fromkeys(names, rank)
    wide = _wide_modules(pattern, names)
    num_wide, num_narrow = len(wide), len(names) - len(wide)
    if not num_wide or not num_narrow:
        return ranks
    budget, wide_rank = len(names) * rank**2, widest_rank(rank, pattern)
    while wide_rank > rank and budget - num_wide * wide_rank**2 < num_narrow:
        wide_rank -= 1
    if wide_rank == rank:
        return ranks
    narrow_rank = isqrt((budget - num_wide * wide_rank**2) // num_narrow)
    return {name: wide_rank if name in wide else narrow_rank for name in names}


def widest_rank(rank: int, pattern: str) -> int:
    """Return the largest rank that a module may get."""
    return rank if pattern == "uniform" or rank < _LEAST else max(rank, round(rank * _SHARE))


def _wide_modules(pattern: str, names: Sequence[str]) -> set[str]:
    """Return the modules that get more; none of a uniform pattern."""
    depth = {name: _depth(name) for name in names}
    depths = sorted(set(depth.values()))
    half = len(depths) // 2
    from_centre = sorted(depths, key=lambda each: (abs(2 * depths.index(each) - (len(depths) - 1)), each))
    chosen = {
        "uniform": [],
        "upper": depths[len(depths) - half :],
        "lower": depths[:half],
        "middle": from_centre[:half],
        "ends": from_centre[len(depths) - half :],
    }[pattern]
    return {name for name in names if depth[name] in chosen}


def _depth(name: str) -> int:
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(match[1]) if match else 0
