"""Points that are good in two ways: more of a score, and less of what is stored. Which of them beat which."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Generic, TypeVar

Point = tuple[float, float]  # (score, turned so that more is better; bytes, of which fewer are better)
KeyT = TypeVar("KeyT", int, str)
_score_of, _bytes_of = itemgetter(0), itemgetter(1)


def dominates(first: Point, second: Point) -> bool:
    """Whether a point is at least as good as another in both ways, and better in one."""
    return first != second and first[0] >= second[0] and first[1] <= second[1]


class Fronts(Generic[KeyT]):
    """Points in fronts: the first holds those that no other dominates, each next one those that only fronts before it
    dominate. Equal points are in the same front, in the order of their keys: which of them came first makes no
    difference.

    They are kept as points come, each in less than a millisecond with 20,000 before it: a new point goes to the first
    front that does not dominate it, and what it dominates there, always one piece of that front, moves on to the next.

    Source: incremental non-dominated sorting in two dimensions, Buzdalov, Yakupov and Stankevich, GECCO 2015.
    """

    def __init__(self) -> None:
        self._fronts: list[list[Point]] = []  # each without repetitions, by bytes, and so by score
        self._sizes: list[int] = []  # keys in each front
        self._keys: dict[Point, list[KeyT]] = {}
        self._points: dict[KeyT, Point] = {}

    def __len__(self) -> int:
        return len(self._points)

    def __contains__(self, key: KeyT) -> bool:
        return key in self._points

    def get(self, key: KeyT) -> Point | None:
        """Return a key's point, None if it is not there."""
        return self._points.get(key)

    def add(self, key: KeyT, point: Point) -> None:
        """Add a key that is not there yet; no number of its point is NaN."""
        assert key not in self._points, "a key has one point"
        self._points[key] = point
        level = self._level(point)
        if point in self._keys:
            bisect.insort(self._keys[point], key)
            self._sizes[level] += 1
        else:
            self._keys[point] = [key]
            self._insert(point, level)

    def discard(self, key: KeyT) -> None:
        """Remove a key, if it is there; costs as much as adding all the others."""
        if key in self._points:
            points = {other: point for other, point in self._points.items() if other != key}
            self.__init__()  # type: ignore[misc]  # empty again
            for other, point in points.items():
                self.add(other, point)

    def first(self) -> list[KeyT]:
        """Return the keys that nothing dominates, by bytes."""
        return [key for point in (self._fronts[0] if self._fronts else ()) for key in self._keys[point]]

    def ordered(self) -> Iterator[KeyT]:
        """Yield all keys, best first: front by front, each in its order of spread."""
        for front in self._fronts:
            for point in spread_order(front):
                yield from self._keys[point]

    def level(self, key: KeyT) -> int:
        """Return the number of a key's front; 0 is the first."""
        return self._level(self._points[key])

    def is_among(self, key: KeyT, limit: float) -> bool:
        """Whether fewer than `limit` keys come before a key in the order of `ordered`; equal points come together."""
        point = self._points[key]
        level = self._level(point)
        before = sum(self._sizes[:level])
        if before >= limit or before + self._sizes[level] <= limit:  # all of its front, or none
            return before < limit
        for other in spread_order(self._fronts[level]):
            if other == point or before >= limit:
                break
            before += len(self._keys[other])
        return before < limit

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _level(self, point: Point) -> int:
        """Return the first front in which nothing dominates a point; what does so there, does in all before."""
        return bisect.bisect_left(self._fronts, True, key=lambda front: not _dominated_in(front, point))

    def _insert(self, point: Point, level: int) -> None:
        """Put a new point into a front; what it dominates there moves on to the next one, and so on."""
        moving, num_moving = [point], 1
        while moving:
            if level == len(self._fronts):
                self._fronts.append([])
                self._sizes.append(0)
            front = self._fronts[level]
            start = bisect.bisect_left(front, moving[0][1], key=_bytes_of)
            stop = bisect.bisect_right(front, moving[-1][0], key=_score_of)
            moving, front[start:stop] = front[start:stop], moving
            pushed = sum(len(self._keys[other]) for other in moving)
            self._sizes[level] += num_moving - pushed
            num_moving, level = pushed, level + 1


def spread_order(front: Sequence[Point]) -> list[Point]:
    """Order the points of one front so that any number of the first ones is spread over it.

    The best score comes first, then always the point that is farthest from its nearest one so far: the fewest bytes
    are second where there are three or more. Distances are in score and in the logarithm of bytes, each as a share of
    the front's own range; of equal distances the better score is first.

    Args:
        front: None dominates another, none is there twice; by bytes.
    Source: the epsilon-net order of arXiv 2106.12639, which found it ahead of crowding distances.
    """
    scores = _shares([score for score, _ in front])
    sizes = _shares([math.log(max(1.0, stored)) for _, stored in front])
    order, left, nearest = list[int](), list(range(len(front))), [math.inf] * len(front)
    while left:
        latest = max(left, key=lambda i: (nearest[i], i))
        left.remove(latest)
        order.append(latest)
        for i in left:
            nearest[i] = min(nearest[i], math.hypot(scores[i] - scores[latest], sizes[i] - sizes[latest]))
    return [front[i] for i in order]


def _shares(values: Sequence[float]) -> list[float]:
    """Return where values lie between the smallest and the largest, from 0 to 1."""
    low = min(values, default=0.0)
    span = max(values, default=0.0) - low
    return [(value - low) / span if 0 < span < math.inf else 0.0 for value in values]


def _dominated_in(front: Sequence[Point], point: Point) -> bool:
    """Whether a point of a front, which is by bytes, dominates a point: only the nearest with no more bytes can."""
    place = bisect.bisect_right(front, point[1], key=_bytes_of) - 1
    return place >= 0 and dominates(front[place], point)
