"""Fronts are those that peeling gives, however points come; the order within one is spread over it."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.pareto import Fronts, Point, dominates, spread_order

POINTS = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(1, 6).map(float)), max_size=40)


def peeled(points: list[Point]) -> list[int]:
    """Return each point's front by the definition: take away what nothing dominates, again and again."""
    levels, left, level = [0] * len(points), set(range(len(points))), 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in front:
            levels[i] = level
        left, level = left - front, level + 1
    return levels


def fronts(points: list[Point]) -> Fronts[int]:
    made = Fronts[int]()
    for number, point in enumerate(points):
        made.add(number, point)
    return made


def before(points: list[Point], number: int) -> int:
    """Return how many come before a point, by the definition."""
    levels = peeled(points)
    own = [points[i] for i in range(len(points)) if levels[i] == levels[number]]
    order = spread_order(sorted(set(own), key=lambda point: point[1]))
    ahead = set(order[: order.index(points[number])])
    return sum(level < levels[number] for level in levels) + sum(point in ahead for point in own)


@given(POINTS)
def test_fronts_are_those_that_peeling_gives(points: list[Point]) -> None:
    made, levels = fronts(points), peeled(points)
    assert [made.level(i) for i in range(len(points))] == levels
    assert set(made.first()) == {i for i, level in enumerate(levels) if level == 0}
    order = list(made.ordered())
    assert sorted(order) == list(range(len(points)))
    assert [levels[i] for i in order] == sorted(levels)


@given(POINTS.filter(bool), st.floats(0, 41))
def test_a_key_is_among_the_best_when_fewer_come_before_it(points: list[Point], limit: float) -> None:
    made = fronts(points)
    for number in range(len(points)):
        assert made.is_among(number, limit) == (before(points, number) < limit)


@given(POINTS.filter(bool), st.data())
def test_what_is_discarded_leaves_no_trace(points: list[Point], data: st.DataObject) -> None:
    gone = data.draw(st.integers(0, len(points) - 1))
    made = fronts(points)
    made.discard(gone)
    made.discard(-1)
    kept = [number for number in range(len(points)) if number != gone]
    without = fronts([points[number] for number in kept])
    assert gone not in made
    assert len(made) == len(kept)
    assert [made.level(number) for number in kept] == [without.level(i) for i in range(len(kept))]
    assert [made.is_among(number, 3) for number in kept] == [without.is_among(i, 3) for i in range(len(kept))]


def test_the_best_comes_first_then_the_smallest_then_what_is_farthest_from_both() -> None:
    front = [(0.70, 1e3), (0.71, 1.1e3), (0.80, 1e4), (0.89, 9e4), (0.90, 1e5)]
    assert spread_order(front)[:3] == [(0.90, 1e5), (0.70, 1e3), (0.80, 1e4)]
    assert sorted(spread_order(front)) == front


@pytest.mark.parametrize("front", [[], [(0.5, 100.0)], [(-math.inf, 1.0), (0.5, 2.0)], [(0.0, 0.0), (1.0, math.inf)]])
def test_a_front_without_a_range_has_an_order_too(front: list[Point]) -> None:
    assert sorted(spread_order(front)) == sorted(front)


def test_a_point_costs_as_much_with_many_before_it() -> None:
    made = Fronts[int]()
    began = time.process_time()
    for number in range(5000):
        made.add(number, (number * 7919 % 997, (1 + number * 31 % 24) * 1000.0))
        made.is_among(number, len(made) / 2)
    assert time.process_time() - began < 5, "some 30 microseconds each; peeling all of them would take a second each"
