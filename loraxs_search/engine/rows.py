"""Which rows of a pass belong to which adapter; adapted layers read it at each forward."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

AdapterT = TypeVar("AdapterT")
RowMapT = TypeVar("RowMapT", bound="RowMap[Any]")


@dataclass(frozen=True)
class RowSegment(Generic[AdapterT]):
    """Rows start..stop of a pass, side by side.

    Args:
        adapter: Whose they are: a slot's index in a pack, stored adapters in a bank.
    """

    adapter: AdapterT
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


class RowMap(Generic[AdapterT]):
    """The rows of one pass, segment after segment, without gaps; at least one."""

    def __init__(self, segments: Sequence[RowSegment[AdapterT]]) -> None:
        self.segments = tuple(segments)
        self.num_rows = self.segments[-1].stop


@dataclass(frozen=True)
class RowRun:
    """Neighbouring rows whose slots have one label.

    Args:
        slots: Slot index of each row, shape (n,), int64, on the device of the pass.
        segments: The same rows, slot by slot.
    """

    start: int
    stop: int
    slots: Tensor
    label: int
    segments: tuple[RowSegment[int], ...]

    @cached_property
    def slot_span(self) -> slice:
        """The slots from the first of these rows' to the last."""
        slots = [segment.adapter for segment in self.segments]
        return slice(min(slots), max(slots) + 1)

    @cached_property
    def places(self) -> Tensor:
        """Where each row's own is among n x slots, if there were one of each row for each of `slot_span`, (n,)."""
        span = self.slot_span
        first = torch.arange(self.stop - self.start, device=self.slots.device) * (span.stop - span.start)
        places: Tensor = first + self.slots - span.start
        return places


class SlotRowMap(RowMap[int]):
    """The rows of slots that are numbered from 0. For one thread."""

    def __init__(self, segments: Sequence[RowSegment[int]], device: torch.device) -> None:
        super().__init__(segments)
        sizes = [segment.num_rows for segment in self.segments]
        slots = torch.tensor([segment.adapter for segment in self.segments])
        self._slots = slots.repeat_interleave(torch.tensor(sizes)).to(device)  # (num_rows,)
        self._runs: dict[Hashable, tuple[RowRun, ...]] = {}

    def runs(self, label_of_slot: tuple[int | None, ...]) -> tuple[RowRun, ...]:
        """Return the longest runs of rows with one label, given each slot's; None if a layer adds nothing.

        Rows of such slots are in no run, so they cost nothing. Cached, since many layers are alike.
        """
        if label_of_slot not in self._runs:
            self._runs[label_of_slot] = tuple(self._make_runs(label_of_slot))
        return self._runs[label_of_slot]

    def _make_runs(self, label_of_slot: tuple[int | None, ...]) -> list[RowRun]:
        spans: list[tuple[int, list[RowSegment[int]]]] = []
        for segment in self.segments:
            label = label_of_slot[segment.adapter]
            if label is None:
                continue
            if spans and (spans[-1][0], spans[-1][1][-1].stop) == (label, segment.start):
                spans[-1][1].append(segment)
            else:
                spans.append((label, [segment]))
        edges = [(own[0].start, own[-1].stop, label, tuple(own)) for label, own in spans]
        return [RowRun(start, stop, self._slots[start:stop], label, own) for start, stop, label, own in edges]


def segments_of(adapters: npt.NDArray[np.integer]) -> list[RowSegment[int]]:
    """Return the segments of rows, given each row's adapter, (n,); rows of one adapter stand side by side."""
    edges = [0, *(np.flatnonzero(np.diff(adapters)) + 1).tolist(), len(adapters)]
    return [RowSegment(int(adapters[a]), a, b) for a, b in itertools.pairwise(edges)]


class PassContext(threading.local, Generic[RowMapT]):
    """Where layers find the row map of the pass that their thread computes; each thread has its own.

    Args:
        worker: Which worker computes the pass; gradients of different workers are kept apart.
    """

    def __init__(self) -> None:
        self.worker = 0
        self._row_map: RowMapT | None = None

    @property
    def row_map(self) -> RowMapT:
        assert self._row_map is not None  # adapted layers run within a pass only
        return self._row_map

    def narrow(self, row_map: RowMapT) -> None:
        """Replace the rows for the rest of the pass: what follows has other ones."""
        self._row_map = row_map

    @contextmanager
    def computing(self, row_map: RowMapT, worker: int = 0) -> Iterator[None]:
        """Set the rows of the pass that this thread computes; inside another pass, that one continues afterwards."""
        before = self._row_map, self.worker
        self._row_map, self.worker = row_map, worker
        try:
            yield
        finally:
            self._row_map, self.worker = before
