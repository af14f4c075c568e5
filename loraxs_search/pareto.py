"""Adapters that are good in two ways: more of a score, and fewer bytes stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

ItemT = TypeVar("ItemT")


def pareto_front(items: Iterable[ItemT], point: Callable[[ItemT], tuple[float, int]]) -> list[ItemT]:
    """Return the items that no other beats in score and bytes together, fewest bytes first; equal ones all.

    Args:
        point: Returns an item's score, turned so that more is better, and its bytes.
    """
    front, best = list[ItemT](), -math.inf
    for item in sorted(items, key=lambda item: (point(item)[1], -point(item)[0])):
        score = point(item)[0]
        if score > best or (front and point(item) == point(front[-1])):
            front.append(item)
            best = score
    return front
