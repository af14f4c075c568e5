"""Which rows a layer computes for whom."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.engine.layers import PassContext, RowMap, RowSegment

CPU = torch.device("cpu")


def row_map(*slots_and_sizes: tuple[int, int]) -> RowMap:
    segments, start = [], 0
    for slot, size in slots_and_sizes:
        segments.append(RowSegment(slot, start, start + size))
        start += size
    return RowMap(segments, CPU)


def runs(rows: RowMap, *label_of_slot: int | None) -> list[tuple[int, int, int, list[int]]]:
    return [(run.start, run.stop, run.label, run.slots.tolist()) for run in rows.runs(label_of_slot)]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=12),
    st.lists(st.none() | st.integers(0, 2), min_size=6, max_size=6),
)
def test_runs_are_a_partition_of_the_adapted_rows(slots_and_sizes, labels):
    rows = row_map(*slots_and_sizes)
    slot_of_row = [slot for slot, size in slots_and_sizes for _ in range(size)]
    assert rows.num_rows == len(slot_of_row)
    found = runs(rows, *labels)
    covered = {row: (slot, label) for start, _, label, slots in found for row, slot in enumerate(slots, start)}
    assert covered == {r: (s, labels[s]) for r, s in enumerate(slot_of_row) if labels[s] is not None}
    assert sum(stop - start for start, stop, _, _ in found) == len(covered)  # no row twice
    assert all(a[1] <= b[0] and (a[1] < b[0] or a[2] != b[2]) for a, b in pairwise(found))  # as long as they can be


def test_each_thread_has_a_pass_of_its_own_and_nothing_stays_when_it_fails():
    context: PassContext = PassContext()
    ready, seen = threading.Barrier(2), {}

    def compute(worker: int) -> None:
        with context.computing(RowMap([RowSegment(f"adapter {worker}", 0, worker + 1)], CPU, worker)):
            ready.wait(10)  # both passes are on
            seen[worker] = (context.row_map.worker, context.row_map.num_rows, context.row_map.segments[0].adapter)

    threads = [threading.Thread(target=compute, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {0: (0, 1, "adapter 0"), 1: (1, 2, "adapter 1")}
    with pytest.raises(ZeroDivisionError), context.computing(RowMap([RowSegment("a", 0, 1)], CPU)):
        raise ZeroDivisionError
    assert context.row_map is None
