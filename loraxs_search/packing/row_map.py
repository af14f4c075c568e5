"""Which rows of the pass at hand belong to which slot; packed layers read it at each forward."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowSegment:
    """Rows start..stop of a pass, all of the slot in this seat."""

    seat: int
    start: int
    stop: int


@dataclass(frozen=True)
class RowRun:
    """Neighbouring rows whose slots share one pair of factors.

    Args:
        seats: Seat of each row, shape (n,), int64, on the device of the pass.
        pair: Which of the layer's factor pairs.
    """

    start: int
    stop: int
    seats: Tensor
    pair: int


class RowMap:
    """The rows of one pass, block after block, without gaps."""

    def __init__(self, blocks: Sequence[RowSegment], device: torch.device) -> None:
        self.blocks = tuple(blocks)
        self.num_rows = self.blocks[-1].stop
        sizes = [block.stop - block.start for block in self.blocks]
        seats = torch.tensor([block.seat for block in self.blocks])
        self._seats = seats.repeat_interleave(torch.tensor(sizes)).to(device)  # (num_rows,)
        self._runs: dict[tuple[int | None, ...], tuple[RowRun, ...]] = {}

    def runs(self, pair_of_seat: tuple[int | None, ...]) -> tuple[RowRun, ...]:
        """Return the runs of a layer that gives each seat a pair of factors, or None where it adapts nothing.

        Rows of such seats are in no run, so they cost nothing. Remembered, since many layers are alike.
        """
        if pair_of_seat not in self._runs:
            self._runs[pair_of_seat] = tuple(self._make_runs(pair_of_seat))
        return self._runs[pair_of_seat]

    def _make_runs(self, pair_of_seat: tuple[int | None, ...]) -> list[RowRun]:
        spans: list[tuple[int, int, int]] = []
        for block in self.blocks:
            pair = pair_of_seat[block.seat]
            if pair is None:
                continue
            if spans and spans[-1][1:] == (block.start, pair):
                spans[-1] = (spans[-1][0], block.stop, pair)
            else:
                spans.append((block.start, block.stop, pair))
        return [RowRun(start, stop, self._seats[start:stop], pair) for start, stop, pair in spans]


class PassContext(threading.local):
    """Where the route of the pass at hand is posted for the layers; each thread has its own.

    Args:
        lane: Which lane computes the pass; gradients of different lanes are kept apart.
    """

    def __init__(self) -> None:
        self.lane = 0
        self._route: RowMap | None = None

    @property
    def route(self) -> RowMap:
        assert self._route is not None  # packed layers run within a pass only
        return self._route

    def post(self, route: RowMap, lane: int) -> None:
        self._route, self.lane = route, lane
