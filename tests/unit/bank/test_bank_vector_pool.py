"""A shelf keeps vectors dense and in order of nothing but what it was told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.bank import vector_pool as room
from loraxs_search.bank.vector_pool import Shelf

CPU = torch.device("cpu")


def vectors(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(-1, 3)


@given(st.lists(st.one_of(st.integers(1, 9), st.floats(0, 1, exclude_max=True)), max_size=40))
def test_a_shelf_is_a_list_whose_holes_the_last_one_fills(steps):
    """Whole numbers add so many vectors, fractions take one away at that share of the length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_SLAB_BYTES", 4 * 3 * 5)  # slabs of five
        shelf, expected, made = Shelf(3, CPU), [], 0
        for step in steps:
            if isinstance(step, int):
                assert list(shelf.append(vectors(made, step))) == list(range(len(expected), len(expected) + step))
                expected += range(made, made + step)
                made += step
            elif expected:
                position = int(step * len(expected))
                assert shelf.remove(position) == len(expected) - 1
                expected[position] = expected[-1]
                expected.pop()
            assert len(shelf) == len(expected)
            if expected:
                found = shelf.gather([*range(len(expected)), 0])
                assert found[:, 0].tolist() == [*map(float, expected), float(expected[0])]
            assert shelf.allocated_bytes <= 4 * 3 * (len(expected) + 5)


def test_room_is_a_twentieth_and_none_is_held_for_an_empty_shelf():
    shelf = Shelf(3, CPU)
    for i in range(1000):
        shelf.append(vectors(i, 1))
        assert shelf.allocated_bytes <= 4 * 3 * 1.05 * len(shelf)
    for _ in range(1000):
        shelf.remove(0)
    assert shelf.allocated_bytes == 0


def test_what_was_gathered_is_a_copy():
    shelf = Shelf(3, CPU)
    shelf.append(vectors(0, 4))
    found = shelf.gather([1, 2])
    shelf.remove(1)
    shelf.append(vectors(7, 1))
    assert found[:, 0].tolist() == [1.0, 2.0]
