"""Batches of rows that are written, and their order once some have left."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.engine.generation import closed_up, generation_batches


@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=60),
    max_rows=st.integers(1, 20),
    num_workers=st.integers(1, 4),
)
def test_every_row_is_in_one_batch_within_both_bounds(lengths: list[int], max_rows: int, num_workers: int) -> None:
    batches = generation_batches(np.array(lengths), max_rows, num_workers)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= max_rows for batch in batches)
    assert all(len(b) * max(lengths[i] for i in b) <= 32768 for b in batches)
    assert len(batches) >= min(num_workers, len(lengths))
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_batches_are_few_and_even() -> None:
    assert [len(batch) for batch in generation_batches(np.full(65, 100), 64)] == [33, 32]
    assert [len(batch) for batch in generation_batches(np.full(20, 100), 64, 2)] == [10, 10]
    assert [len(batch) for batch in generation_batches(np.full(1, 100), 64, 2)] == [1]


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), data=st.data())
def test_rows_that_are_left_stand_group_by_group(sizes: list[int], data: st.DataObject) -> None:
    groups = np.repeat(np.arange(len(sizes)) * 3, sizes)
    stays = np.array(data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))))
    order = closed_up(stays, groups)
    assert sorted(order.tolist()) == np.flatnonzero(stays).tolist()
    assert (np.diff(groups[order]) >= 0).all()


def test_few_rows_move() -> None:
    stays = np.ones(40, bool)
    stays[3] = False
    order = closed_up(stays, np.repeat(np.arange(4), 10))
    assert (order != np.arange(39)).sum() == 4  # the last of each group fills the gap before it
