"""Layers that give each row its own adapter, and the contract of what a method adds to them.

A linear layer computes y = W x + what each update adds; where updates are trained, base and updates are one step of the
graph. A head sends each row through its adapter's own weights; the numbers of outputs may differ.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from loraxs_search.base_model.layers import WrappedLayer, matrix

if TYPE_CHECKING:
    from loraxs_search.engine.prefix_cache import PrefixCache

Indices = npt.NDArray[np.int64]
Owners = npt.NDArray[np.integer]  # whose adapter each row has, (n,), by numbers that the base knows


@dataclass(frozen=True)
class RowSegment:
    """Rows start..stop of a pass, side by side.

    Args:
        adapter: Whose they are: a slot's index in a pack, stored adapters in a bank.
    """

    adapter: Any
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class _RowRun:
    """Neighbouring rows whose slots have one label.

    Args:
        slots: Slot index of each row, shape (n,), int64, on the device of the pass.
        segments: The same rows, slot by slot.
    """

    start: int
    stop: int
    slots: Tensor
    label: int
    segments: tuple[RowSegment, ...]

    @cached_property
    def slot_span(self) -> slice:
        """The slots from the first of these rows' to the last."""
        slots = [segment.adapter for segment in self.segments]
        return slice(min(slots), max(slots) + 1)

    @cached_property
    def places(self) -> Tensor:
        """Where each row's own product is among those of all rows with all slots of `slot_span`, (n,)."""
        span = self.slot_span
        first = torch.arange(self.stop - self.start, device=self.slots.device) * (span.stop - span.start)
        places: Tensor = first + self.slots - span.start
        return places


class RowMap:
    """The rows of one pass, segment after segment, without gaps; at least one. For one thread.

    A layer computes T positions of the first row, T of the next, and so on; T may be less than the row's tokens.

    Args:
        worker: Which of the threads that compute passes side by side this is, from 0.
    """

    def __init__(self, segments: Sequence[RowSegment], device: torch.device, worker: int = 0) -> None:
        self.segments, self.worker = tuple(segments), worker
        self.num_rows = self.segments[-1].stop
        self._device = device
        self._runs: dict[Hashable, tuple[_RowRun, ...]] = {}

    def positions(self, x: Tensor, start: int, stop: int) -> slice:
        """Return where the positions of rows start..stop are in x, (n T, ...)."""
        num_positions = len(x) // self.num_rows
        return slice(start * num_positions, stop * num_positions)

    def runs(self, label_of_slot: tuple[int | None, ...]) -> tuple[_RowRun, ...]:
        """Return the longest runs of rows with one label, given that of each slot: segments name slots, from 0.

        Rows of slots labelled None, to which a layer adds nothing, are in no run, so they cost nothing. Cached, since
        many layers are alike.
        """
        if label_of_slot not in self._runs:
            spans: list[tuple[int, list[RowSegment]]] = []
            for segment in self.segments:
                label = label_of_slot[segment.adapter]
                if label is None:
                    continue
                if spans and (spans[-1][0], spans[-1][1][-1].stop) == (label, segment.start):
                    spans[-1][1].append(segment)
                else:
                    spans.append((label, [segment]))
            runs = []
            for label, own in spans:
                slots = np.repeat([segment.adapter for segment in own], [segment.num_rows for segment in own])
                slots_n = torch.from_numpy(slots).to(self._device)
                runs.append(_RowRun(own[0].start, own[-1].stop, slots_n, label, tuple(own)))
            self._runs[label_of_slot] = tuple(runs)
        return self._runs[label_of_slot]


class PassContext(threading.local):
    """Where layers find the rows of the pass that their thread computes; each thread has its own."""

    row_map: Any = None  # a `RowMap`, None outside a pass; where what follows has other rows, it is replaced within one

    @contextmanager
    def computing(self, row_map: RowMap | None) -> Iterator[None]:
        """Set the rows of the pass that this thread computes; inside another pass, that one continues afterwards."""
        before, self.row_map = self.row_map, row_map
        try:
            yield
        finally:
            self.row_map = before


class LayerUpdate(Protocol):
    """What adapters of one method add to the output of one linear layer, row by row.

    Letters: n rows of T positions each. A row's update depends only on that row and its adapter. Several threads call
    at the same time, each for its own pass, so `adapts` and `add_` change nothing of the update itself.

    One that is trained gathers gradients per worker, so that sums do not depend on timing. At most one `backward_`
    follows each `add_`, none if rows are only scored; both name the same worker, and nothing else runs for that worker
    at the same time.
    """

    def adapts(self, rows: RowMap) -> bool:
        """Whether any of these rows is adapted on this layer; where none is, `add_` is not called."""

    def add_(self, x: Tensor, y: Tensor, rows: RowMap) -> Sequence[Tensor]:
        """Add to y, in place, and return the tensors that `backward_` will need: they are held until then.

        Called with gradients off, in the order in which the layer's updates stand.

        Args:
            x: What enters the layer, shape (n T, in), in the dtype of the base; read only.
            y: What leaves it, shape (n T, out), a view: the base's output and what other updates have added.
        """

    def backward_(self, dy: Tensor, dx: Tensor | None, saved: Sequence[Tensor], rows: RowMap) -> None:
        """Add this update's part to dx, in place, and its parameters' gradients to what the worker has gathered.

        Args:
            dy: Gradient of y, shape (n T, out); read only.
            dx: Gradient of x so far, shape (n T, in); None if nobody needs it.
            saved: What `add_` returned.
        """
        raise AssertionError("an update that is only scored has no gradients")


class SlotUpdates(Protocol):
    """What the slots of one method add to a base, while a pack has exactly these slots.

    For one thread, between passes. In a round: `begin`, then passes through the updates of all layers, then `collect`
    where they had gradients.
    """

    modules: list[str]  # full names of the layers that some slot adapts, in model order

    @property
    def slot_bytes(self) -> int:
        """Memory that one slot takes here, in addition to its own."""

    def update(self, module: str) -> LayerUpdate:
        """Return what is added to the output of one of `modules`; slots are numbered as they were given."""

    def begin(self) -> None:
        """Read every slot's current tensors, and set gradients to zero."""

    def collect(self) -> None:
        """Set `grad` of every slot's tensors: summed over all passes, worker by worker in their order."""


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
        self, base_layer: nn.Module, context: PassContext, state: Callable[[RowSegment, int], HeadState]
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._context, self._state = context, state
        self._one_at_a_time = threading.Lock()  # `functional_call` changes a module while it runs

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return each row's output, float32; outputs narrower than the widest are padded with zeros."""
        row_map, outputs = self._context.row_map, list[Tensor]()
        sizes = [segment.num_rows for segment in row_map.segments]
        for segment, rows in zip(row_map.segments, torch.split(x.float(), sizes), strict=True):
            state = self._state(segment, row_map.worker)
            module, parameters = state.module, dict(state.parameters)
            if not parameters:
                outputs.append(module(rows, *args, **kwargs))
            elif type(module) is nn.Linear:  # `functional_call` costs more than such a head itself
                weight = parameters.get("weight", module.weight)  # (out, in), or (n, out, in) of each row
                bias = parameters.get("bias", module.bias)  # (out,), or (n, out)
                if state.per_row:
                    z = rows.flatten(1, -2) if rows.ndim > 2 else rows[:, None]  # (n, T, in)
                    y = torch.matmul(z, weight.mT)  # (n, T, out)
                    if bias is not None:
                        y = y + (bias[:, None] if "bias" in parameters else bias)
                    outputs.append(y.view(*rows.shape[:-1], -1))
                else:
                    outputs.append(linear(rows, weight, bias))
            else:
                with self._one_at_a_time:
                    outputs.append(
                        torch.vmap(
                            lambda own, row, module=module: functional_call(module, own, (row[None], *args), kwargs)[0]
                        )(parameters, rows)
                        if state.per_row
                        else functional_call(module, parameters, (rows, *args), kwargs)
                    )
        width = max(out.shape[-1] for out in outputs)
        return torch.cat([out if out.shape[-1] == width else pad(out, (0, width - out.shape[-1])) for out in outputs])


class AdaptedLinear(nn.Module):
    """Replaces an `nn.Linear` or `Conv1D`; the layer inside is not changed, W stays frozen.

    Args:
        context: Has the rows of the current pass; rows come first in x (n, ..., in).
        updates: Added in this order.
    """

    def __init__(self, base_layer: nn.Module, context: PassContext, updates: Sequence[LayerUpdate]) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.updates = tuple(updates)
        self._context = context
        # A leaf, so that a graph is built even where no input needs a gradient; not a parameter of the model.
        self._anchor = self.weight.detach().new_empty(0).requires_grad_()

    @property
    def weight(self) -> Tensor:
        """The base's own weight, for models that ask a layer for it."""
        return self.base_layer.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        rows = self._context.row_map
        updates = [update for update in self.updates if update.adapts(rows)]
        if not updates:
            out: Tensor = self.base_layer(x)  # (n, ..., out)
            return out
        # A layer may have fewer positions than the row has tokens; `probe_sharing` saw that all rows have as many.
        assert x.numel() // x.shape[-1] % rows.num_rows == 0
        if torch.is_grad_enabled():
            return _sum(x, self._anchor, self.base_layer, updates, rows)
        y, _ = _added(x, self.base_layer, updates, rows)
        return y


def _added(
    x: Tensor, base_layer: nn.Module, updates: Sequence[LayerUpdate], rows: RowMap
) -> tuple[Tensor, list[Sequence[Tensor]]]:
    """Return what leaves a layer, and what each update needs for backward."""
    y: Tensor = base_layer(x)
    x_2d, y_2d = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])  # (n T, in), (n T, out)
    return y, [update.add_(x_2d, y_2d, rows) for update in updates]


class _Sum(torch.autograd.Function):
    """Base layer and updates as one step, so that sums are made in place and x is not kept for backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, _: Tensor, base_layer: nn.Module, updates: Sequence[LayerUpdate], rows: RowMap
    ) -> Tensor:
        y, saved = _added(x, base_layer, updates, rows)
        ctx.save_for_backward(*chain.from_iterable(saved))
        ctx.counts = [len(tensors) for tensors in saved]
        ctx.base_layer, ctx.updates, ctx.rows = base_layer, updates, rows
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        dy_2d = dy.reshape(-1, dy.shape[-1])  # (n T, out)
        dx_2d = torch.mm(dy_2d, matrix(ctx.base_layer)) if ctx.needs_input_grad[0] else None  # (n T, in)
        saved, start = ctx.saved_tensors, 0
        for update, count in zip(ctx.updates, ctx.counts, strict=True):
            update.backward_(dy_2d, dx_2d, saved[start : start + count], ctx.rows)
            start += count
        return None if dx_2d is None else dx_2d.view(*dy.shape[:-1], -1), None, None, None, None


_sum = cast("Callable[..., Tensor]", _Sum.apply)


class GradientCheckpointing:
    """Makes passes with gradients compute the repeated layers twice; what they compute stays the same.

    Layers keep only their input, and are computed again when backward reaches them: a third more time, and of a pass
    only one layer's activations at a time. transformers' own does this in training mode only, which would turn dropout
    on, and knows nothing of our row maps.

    Layers below the lowest adapted one keep nothing for backward anyway. The topmost one is not touched: backward
    begins there, so it would gain nothing, and what is pruned of it may differ from pass to pass.

    Args:
        layers: The base's repeated layers; None when it has no such list, and then nothing is done.
        context: Where adapted layers find the rows of their pass.
    """

    def __init__(self, layers: nn.ModuleList | None, context: PassContext) -> None:
        self._layers, self._context = layers if layers is not None else nn.ModuleList(), context
        self._placed: list[int] = []
        self.is_on = False

    def turn_on(self) -> bool:
        """Checkpoint from the next `place` on; return whether that is new and possible."""
        new = not self.is_on and len(self._layers) > 1
        self.is_on = self.is_on or new
        return new

    def place(self, lowest: int) -> None:
        """Wrap the layers from `lowest` on if checkpointing is on; adapted layers must be in place already."""
        for index in range(lowest, len(self._layers) - 1 if self.is_on else 0):
            self._layers[index] = _CheckpointedLayer(self._layers[index], self._context)
            self._placed.append(index)

    def remove(self) -> None:
        """Put the layers back."""
        for index in self._placed:
            self._layers[index] = self._layers[index].get_submodule("layer")
        self._placed.clear()


class _CheckpointedLayer(WrappedLayer):
    """Computes a layer again in backward."""

    def __init__(self, layer: nn.Module, context: PassContext) -> None:
        super().__init__(layer)
        self._context = context

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.layer(*args, **kwargs)
        row_map = self._context.row_map

        def compute(*args: Any, **kwargs: Any) -> Any:
            # The second time backward calls this, after the pass, and on an accelerator in another thread.
            with self._context.computing(row_map):
                return self.layer(*args, **kwargs)

        # Nothing is drawn at random: dropout is off.
        return checkpoint(compute, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the base that a model is, or that carries its adapters."""
    # Only PEFT's models have this method. Their class is not imported here: that import brings our methods with it.
    return cast("PreTrainedModel", cast("Any", model).get_base_model() if hasattr(model, "get_base_model") else model)


class AdaptedBase:
    """A base whose rows all have one adapter, as PEFT puts it on, or none. Subclasses know many.

    Several threads may compute passes at the same time; `begin` and `checkpoint_gradients` are called between passes.

    Args:
        model: The base as its task loads it, with or without adapters on it.
        context: Where adapted layers find the rows of their pass.
    """

    prefix: PrefixCache | None = None

    def __init__(self, model: nn.Module, context: PassContext | None = None) -> None:
        self.model, self.context = model, context or PassContext()
        self.device = next(model.parameters()).device

    def begin(self) -> None:
        """Read the adapters' current numbers, and set gradients to zero."""

    def row_map(self, owners: Owners, worker: int = 0) -> RowMap | None:
        """Return the rows of a pass that a worker computes; those of one owner stand side by side."""
        return None

    @contextmanager
    def reading(self, reads: Tensor | None, width: int, owners: Owners) -> Iterator[bool]:
        """Compute no more of the topmost layer than this thread's pass reads, where that can be; yield whether it is.

        Args:
            reads: Row and column of each read, (M, 2); None if a head reads.
            width: T, the tokens of each row, padding included.
            owners: Whose each read is, (M,).
        """
        yield False

    def checkpoint_gradients(self) -> bool:
        """Compute layers again in backward from now on, to save memory; return whether that is new and possible."""
        return False
