"""Layers that give each row its own adapter, and the contract of what a method adds to them.

A linear layer computes y = W x + what each update adds; where updates are trained, base and updates are one step of the
graph. A head sends each row through its adapter's own weights; the numbers of outputs may differ.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, pad

from loraxs_search.base_model.layers import matrix

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


RowMapT_co = TypeVar("RowMapT_co", bound="RowMap[Any]", covariant=True)
RowMapT_contra = TypeVar("RowMapT_contra", bound="RowMap[Any]", contravariant=True)


@dataclass(frozen=True)
class LayerRows(Generic[RowMapT_co]):
    """The rows of a pass as one layer computes them: T positions of the first row, T of the next, and so on.

    Args:
        num_positions: T. A layer may have fewer than the row has tokens; all rows have as many.
        worker: Which of the threads that compute passes side by side this is, from 0.
    """

    row_map: RowMapT_co
    num_positions: int
    worker: int = 0

    def positions(self, start: int, stop: int) -> slice:
        """Return the slice of the positions of rows start..stop."""
        return slice(start * self.num_positions, stop * self.num_positions)


class LayerUpdate(Protocol[RowMapT_contra]):
    """What adapters of one method add to the output of one linear layer, row by row.

    Letters: n rows of T positions each. A row's update depends only on that row and its adapter. Several threads call
    at the same time, each for its own pass, so `adapts` and `add_` change nothing of the update itself.
    """

    def adapts(self, row_map: RowMapT_contra) -> bool:
        """Whether any of these rows is adapted on this layer; where none is, `add_` is not called."""
        ...

    def add_(self, x: Tensor, y: Tensor, rows: LayerRows[RowMapT_contra]) -> Sequence[Tensor]:
        """Add to y, in place, and return the tensors that `backward_` will need: they are held until then.

        Called with gradients off, in the order in which the layer's updates stand.

        Args:
            x: What enters the layer, shape (n T, in), in the dtype of the base; read only.
            y: What leaves it, shape (n T, out), a view: the base's output and what other updates have added.
        """
        ...


class TrainableUpdate(LayerUpdate[RowMapT_contra], Protocol[RowMapT_contra]):
    """An update with gradients. It gathers them per worker, so that sums do not depend on timing.

    At most one `backward_` follows each `add_`, none if rows are only scored; both name the same worker, and
    nothing else runs for that worker at the same time.
    """

    def backward_(
        self, dy: Tensor, dx: Tensor | None, saved: Sequence[Tensor], rows: LayerRows[RowMapT_contra]
    ) -> None:
        """Add this update's part to dx, in place, and its parameters' gradients to what the worker has gathered.

        Args:
            dy: Gradient of y, shape (n T, out); read only.
            dx: Gradient of x so far, shape (n T, in); None if nobody needs it.
            saved: What `add_` returned.
        """
        ...


class SlotUpdates(Protocol):
    """What the slots of one method add to a base, while a pack has exactly these slots.

    For one thread, between passes. In a round: `begin`, then passes through the updates of all layers, then `collect`
    where they had gradients.
    """

    @property
    def modules(self) -> Sequence[str]:
        """Full names of the layers that some slot adapts, in model order."""
        ...

    @property
    def slot_bytes(self) -> int:
        """Memory that one slot takes here, in addition to its own."""
        ...

    def update(self, module: str) -> TrainableUpdate[SlotRowMap]:
        """Return what is added to the output of one of `modules`; slots are numbered as they were given."""
        ...

    def begin(self) -> None:
        """Read every slot's current tensors, and set gradients to zero."""
        ...

    def collect(self) -> None:
        """Set `grad` of every slot's tensors: summed over all passes, worker by worker in their order."""
        ...


@dataclass(frozen=True)
class HeadState:
    """One head module, with the parameters that the rows of a segment use.

    Args:
        module: Gives the function, and the values of what is not in `parameters`; float32, not changed.
        parameters: Values in place of the module's own, by their names within it.
        per_row: Whether each of them has the segment's rows first, (n, *shape), or serves all rows.
    """

    module: nn.Module
    parameters: Mapping[str, Tensor]
    per_row: bool = False


class AdaptedHead(nn.Module):
    """Replaces a head module.

    Args:
        state: Returns what a segment's rows go through, given the worker that computes the pass.
    """

    def __init__(
        self, base_layer: nn.Module, context: PassContext[Any], state: Callable[[RowSegment[AdapterT], int], HeadState]
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._context: PassContext[RowMap[Any]] = context
        self._state: Callable[[RowSegment[Any], int], HeadState] = state
        self._one_at_a_time = threading.Lock()  # `functional_call` changes a module while it runs

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return each row's output, float32; outputs narrower than the widest are padded with zeros."""
        segments, worker = self._context.row_map.segments, self._context.worker
        parts = torch.split(x.float(), [segment.num_rows for segment in segments])
        outputs = [
            self._out(self._state(segment, worker), part, args, kwargs)
            for segment, part in zip(segments, parts, strict=True)
        ]
        width = max(out.shape[-1] for out in outputs)
        return torch.cat([out if out.shape[-1] == width else pad(out, (0, width - out.shape[-1])) for out in outputs])

    def _out(self, state: HeadState, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        module, parameters = state.module, dict(state.parameters)
        out: Tensor
        if not parameters:
            out = module(x, *args, **kwargs)
            return out
        if type(module) is nn.Linear:  # `functional_call` costs more than such a head itself
            return _linear(module, parameters, x, state.per_row)
        with self._one_at_a_time:
            if state.per_row:
                each = torch.vmap(lambda own, row: functional_call(module, own, (row[None], *args), kwargs)[0])
                out = each(parameters, x)
            else:
                out = functional_call(module, parameters, (x, *args), kwargs)
        return out


def _linear(module: nn.Linear, parameters: dict[str, Tensor], x: Tensor, per_row: bool) -> Tensor:
    """Apply weight (out, in) and bias (out,), or (n, out, in) and (n, out) where each row has its own."""
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if not per_row:
        return linear(x, module.weight if weight is None else weight, module.bias if bias is None else bias)
    z = x.flatten(1, -2) if x.ndim > 2 else x[:, None]  # (n, T, in)
    y = torch.matmul(z, module.weight.T if weight is None else weight.transpose(1, 2))  # (n, T, out)
    shift = module.bias if bias is None else bias[:, None]
    return (y if shift is None else y + shift).view(*x.shape[:-1], -1)


class AdaptedLinear(nn.Module):
    """Replaces an `nn.Linear` or `Conv1D`; the layer inside is not changed. For passes without gradients.

    Args:
        context: Has the rows of the current pass; rows come first in x (n, ..., in).
        updates: Added in this order.
    """

    def __init__(
        self, base_layer: nn.Module, context: PassContext[RowMapT], updates: Sequence[LayerUpdate[RowMapT]]
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._context: PassContext[Any] = context
        self.updates: tuple[LayerUpdate[Any], ...] = tuple(updates)

    @property
    def weight(self) -> Tensor:
        """The base's own weight, for models that ask a layer for it."""
        return self.base_layer.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)  # (n, ..., out)
        row_map: RowMap[Any] = self._context.row_map
        updates = [update for update in self.updates if update.adapts(row_map)]
        if updates:
            rows = LayerRows(row_map, num_positions(x, row_map))
            x_2d, y_2d = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])  # (n T, in), (n T, out)
            for update in updates:
                update.add_(x_2d, y_2d, rows)
        return y


class WrappedLayer(nn.Module):
    """Stands where a layer was; some models ask their layers for attributes, such as what kind they are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def num_positions(x: Tensor, row_map: RowMap[Any]) -> int:
    """Return T, the positions that x (n, ..., in) has for each row."""
    total = x.numel() // x.shape[-1]
    assert total % row_map.num_rows == 0  # `probe_sharing` saw that each row has as many
    return total // row_map.num_rows


class TrainedLinear(AdaptedLinear):
    """An `AdaptedLinear` for passes with gradients too; W stays frozen."""

    updates: tuple[TrainableUpdate[Any], ...]

    def __init__(
        self, base_layer: nn.Module, context: PassContext[RowMapT], updates: Sequence[TrainableUpdate[RowMapT]]
    ) -> None:
        super().__init__(base_layer, context, updates)
        # A leaf, so that a graph is built even where no input needs a gradient; not a parameter of the model.
        self._anchor = self.weight.detach().new_empty(0).requires_grad_()

    @property
    def matrix(self) -> Tensor:
        """The base weight as the function computes it, shape (out, in)."""
        return matrix(self.base_layer)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        row_map = self._context.row_map
        updates = [update for update in self.updates if update.adapts(row_map)]
        if not updates:
            y: Tensor = self.base_layer(x)
            return y
        return _sum(x, self._anchor, self, updates, LayerRows(row_map, num_positions(x, row_map), self._context.worker))


class _Sum(torch.autograd.Function):
    """Base layer and updates as one step, so that sums are made in place and x is not kept for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _: Tensor,
        layer: TrainedLinear,
        updates: Sequence[TrainableUpdate[Any]],
        rows: LayerRows[Any],
    ) -> Tensor:
        y: Tensor = layer.base_layer(x)
        x_2d, y_2d = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])  # (n T, in), (n T, out)
        saved = [update.add_(x_2d, y_2d, rows) for update in updates]
        ctx.save_for_backward(*chain.from_iterable(saved))
        ctx.counts = [len(tensors) for tensors in saved]
        ctx.layer, ctx.updates, ctx.rows = layer, updates, rows
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        layer: TrainedLinear = ctx.layer
        dy_2d = dy.reshape(-1, dy.shape[-1])  # (n T, out)
        dx_2d = torch.mm(dy_2d, layer.matrix) if ctx.needs_input_grad[0] else None  # (n T, in)
        saved, start = ctx.saved_tensors, 0
        for update, count in zip(ctx.updates, ctx.counts, strict=True):
            update.backward_(dy_2d, dx_2d, saved[start : start + count], ctx.rows)
            start += count
        return None if dx_2d is None else dx_2d.view(*dy.shape[:-1], -1), None, None, None, None


_sum = cast("Callable[..., Tensor]", _Sum.apply)
