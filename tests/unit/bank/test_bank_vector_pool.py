"""A pool keeps vectors dense, whatever comes and goes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.bank import adapter_store as vector_pool
from loraxs_search.bank.adapter_store import VectorPool

CPU = torch.device("cpu")


def vectors(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(-1, 3)


@given(st.lists(st.one_of(st.integers(1, 9), st.floats(0, 1, exclude_max=True)), max_size=40))
def test_a_pool_is_a_list_whose_holes_the_last_one_fills(steps):
    """Whole numbers add so many vectors, fractions take one away at that share of the length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_pool, "_SLAB_BYTES", 4 * 3 * 5)  # slabs of five
        pool, expected, made = VectorPool(3, CPU), [], 0
        for step in steps:
            if isinstance(step, int):
                assert list(pool.append(vectors(made, step))) == list(range(len(expected), len(expected) + step))
                expected += range(made, made + step)
                made += step
            elif expected:
                position = int(step * len(expected))
                assert pool.remove(position) == len(expected) - 1
                expected[position] = expected[-1]
                expected.pop()
            if expected:
                found = pool.gather([*range(len(expected)), 0])
                assert found[:, 0].tolist() == [*map(float, expected), float(expected[0])]
            assert pool.allocated_bytes <= 4 * 3 * (len(expected) + 5)


def test_room_is_a_twentieth_and_none_is_held_for_an_empty_pool():
    pool = VectorPool(3, CPU)
    for i in range(1000):
        pool.append(vectors(i, 1))
        assert pool.allocated_bytes <= 4 * 3 * 1.05 * (i + 1)
    for _ in range(1000):
        pool.remove(0)
    assert pool.allocated_bytes == 0


def test_what_was_gathered_is_a_copy():
    pool = VectorPool(3, CPU)
    pool.append(vectors(0, 4))
    found = pool.gather([1, 2])
    pool.remove(1)
    pool.append(vectors(7, 1))
    assert found[:, 0].tolist() == [1.0, 2.0]
