"""Whose adapters the rows of a pass have: the base as the engine computes it, and what its layers read of rows."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.engine.prefix_cache import PrefixCache

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
        """Return the longest runs of rows with one label, given each slot's; None where a layer adds nothing.

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
        """Set the rows of the pass that this thread computes; inside another pass, that one goes on afterwards."""
        before = self._row_map, self.worker
        self._row_map, self.worker = row_map, worker
        try:
            yield
        finally:
            self._row_map, self.worker = before


Owners = npt.NDArray[np.integer]  # whose adapter each row has, (n,), by numbers that the base knows


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the base that a model is, or that carries its adapters."""
    return cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)


class AdaptedBase:
    """A base whose rows all have one adapter, as PEFT puts it on, or none. Subclasses know many.

    Several threads may compute passes at the same time; `begin` and `checkpoint_gradients` are called between passes.

    Args:
        model: The base as its task loads it, with or without adapters on it.
        context: Where adapted layers find the rows of their pass; None where all rows have one adapter.
    """

    # Whether what all rows of one request begin with is computed once: where passes skip layers instead, it is not.
    shares_beginnings = True
    prefix: PrefixCache | None = None

    def __init__(self, model: nn.Module, context: PassContext[Any] | None = None) -> None:
        self.model, self.context = model, context

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return next(self.model.parameters()).device

    def begin(self) -> None:
        """Read the adapters' current numbers, and set gradients to zero."""

    def row_map(self, owners: Owners) -> RowMap[Any] | None:
        """Return the rows of a pass; those of one owner stand side by side."""
        return None

    def computing(self, row_map: RowMap[Any] | None, worker: int = 0) -> AbstractContextManager[None]:
        """Set the rows of the pass that this thread computes, until the context ends."""
        if self.context is None or row_map is None:
            return nullcontext()
        return self.context.computing(row_map, worker)

    @contextmanager
    def computing_whole(self, row_map: RowMap[Any] | None, worker: int = 0) -> Iterator[None]:
        """The same for passes that skip no layer, since a cache needs the keys and values of all."""
        with self.prefix.paused() if self.prefix else nullcontext(), self.computing(row_map, worker):
            yield

    @contextmanager
    def reading(self, reads: Tensor | None, width: int, owners: Owners) -> Iterator[bool]:
        """Compute no more of the topmost layer than this thread's pass reads, where that can be; yield whether it is.

        Args:
            reads: Row and column of each read, (M, 2); None where a head reads.
            width: T, the tokens of each row, padding included.
            owners: Whose each read is, (M,).
        """
        yield False

    def checkpoint_gradients(self) -> bool:
        """Compute layers again in backward from now on, to save memory; return whether that is new and possible."""
        return False
