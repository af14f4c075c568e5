"""More rank in some layers and less in others, with no more numbers in R than one rank for all. Read without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isqrt, sqrt

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
