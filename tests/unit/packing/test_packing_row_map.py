"""Which rows a layer computes for whom."""

from __future__ import annotations

import torch

from loraxs_search.packing.row_map import RowMap, RowSegment

CPU = torch.device("cpu")


def runs(route: RowMap, *pair_of_seat: int | None) -> list[tuple[int, int, int, list[int]]]:
    return [(run.start, run.stop, run.pair, run.seats.tolist()) for run in route.runs(pair_of_seat)]


def test_neighbours_with_the_same_factors_are_one_run() -> None:
    route = RowMap([RowSegment(0, 0, 2), RowSegment(2, 2, 3), RowSegment(3, 3, 5)], CPU)
    assert runs(route, 0, None, 0, 0) == [(0, 5, 0, [0, 0, 2, 3, 3])]
    assert runs(route, 0, None, 1, 1) == [(0, 2, 0, [0, 0]), (2, 5, 1, [2, 3, 3])]


def test_rows_of_slots_that_do_not_adapt_a_layer_are_in_no_run() -> None:
    route = RowMap([RowSegment(0, 0, 2), RowSegment(1, 2, 3), RowSegment(2, 3, 5)], CPU)
    assert runs(route, 0, None, 0) == [(0, 2, 0, [0, 0]), (3, 5, 0, [2, 2])]
    assert runs(route, None, None, None) == []
