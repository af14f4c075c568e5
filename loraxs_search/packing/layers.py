"""Layers that serve many trials in one pass: y = W x + B C_k A x for the rows of slot k.

Shapes: x (n, ..., in) with rows first, A (k, in), B (out, k), C (seats, k, k): each slot's R with its scale and
singular values folded in, zero outside the slot's own rank. A and B are orthonormal, the same for every sigma.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, pad

from loraxs_search.base_model import matrix
from loraxs_search.packing.row_map import PassContext, RowRun


@dataclass(frozen=True)
class Pair:
    """Factors cut to the pack's widest rank: A (k, in), B (out, k), in the dtype of the base weight."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Cores:
    """C of one layer in three forms, all (seats, k, k).

    Args:
        exact: float32; a leaf, so that a graph is built even where no input needs a gradient.
        rounded: In the dtype of the base weight, which is what passes compute with.
        grads: float32, one for each lane; passes add to their lane's.
    """

    exact: nn.Parameter
    rounded: Tensor
    grads: Tensor


class PackedLinear(nn.Module):
    """Stands in for an `nn.Linear` or `Conv1D` while slots adapt it; the layer inside is not touched.

    Args:
        pair_of_seat: Index into `pairs` for each seat; None where the slot does not adapt this layer.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        board: PassContext,
        cores: Cores,
        pairs: tuple[Pair, ...],
        pair_of_seat: tuple[int | None, ...],
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.cores, self.pairs = cores, pairs
        self._board, self._pair_of_seat = board, pair_of_seat

    @property
    def weight(self) -> Tensor:
        """The base's own weight, for models that ask a layer for it."""
        return self.base_layer.get_parameter("weight")

    @property
    def matrix(self) -> Tensor:
        """The base weight as the function computes it, shape (out, in)."""
        return matrix(self.base_layer)

    def forward(self, x: Tensor) -> Tensor:
        route = self._board.route
        runs = route.runs(self._pair_of_seat)
        if not runs:
            y: Tensor = self.base_layer(x)
            return y
        return _packed_update(x, self.cores.exact, self, runs, route.num_rows, self.cores.grads[self._board.lane])


class _PackedUpdate(torch.autograd.Function):
    """Base layer and update as one step, so that sums are made in place and x is not kept for backward.

    The gradient of C is added to `grad` at once: in float32 over all passes that a lane computes in a round.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, _: Tensor, layer: PackedLinear, runs: tuple[RowRun, ...], num_rows: int, grad: Tensor
    ) -> Tensor:
        y: Tensor = layer.base_layer(x)
        x_2d, y_2d = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])  # (n T, in), (n T, out)
        assert x_2d.shape[0] % num_rows == 0  # a probe saw that each row has as many positions
        ctx.per_row = x_2d.shape[0] // num_rows  # T
        kept = []
        for run in runs:
            pair, (m, start, stop) = layer.pairs[run.pair], _extent(run, ctx.per_row)
            z = torch.mm(x_2d[start:stop], pair.a.T).view(m, ctx.per_row, -1)  # (m, T, k)
            c = layer.cores.rounded[run.seats]  # (m, k, k)
            u = torch.bmm(z, c.transpose(1, 2))  # (m, T, k)
            y_2d[start:stop].addmm_(u.view(stop - start, -1), pair.b.T)
            kept += [z, c]
        ctx.save_for_backward(*kept)
        ctx.layer, ctx.runs, ctx.grad = layer, runs, grad
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        layer: PackedLinear = ctx.layer
        dy_2d = dy.reshape(-1, dy.shape[-1])  # (n T, out)
        dx_2d = torch.mm(dy_2d, layer.matrix) if ctx.needs_input_grad[0] else None  # (n T, in)
        kept = iter(ctx.saved_tensors)
        for run, z, c in zip(ctx.runs, kept, kept, strict=True):
            pair, (m, start, stop) = layer.pairs[run.pair], _extent(run, ctx.per_row)
            g = torch.mm(dy_2d[start:stop], pair.b).view(m, ctx.per_row, -1)  # (m, T, k)
            per_row = torch.bmm(g.transpose(1, 2), z)  # (m, k, k)
            ctx.grad.index_add_(0, run.seats, per_row.to(ctx.grad.dtype))
            if dx_2d is not None:
                dx_2d[start:stop].addmm_(torch.bmm(g, c).view(stop - start, -1), pair.a)
        return None if dx_2d is None else dx_2d.view(*dy.shape[:-1], -1), None, None, None, None, None


_packed_update = cast("Callable[..., Tensor]", _PackedUpdate.apply)


def _extent(run: RowRun, per_row: int) -> tuple[int, int, int]:
    """Return a run's number of rows, and where its tokens start and stop."""
    return run.stop - run.start, run.start * per_row, run.stop * per_row


class PackedHead(nn.Module):
    """Stands in for a head module: each slot's rows go through its own weights, label counts may differ.

    Args:
        states: For each lane, for each seat: the head module's parameters by name.
    """

    def __init__(
        self, base_layer: nn.Module, board: PassContext, states: Sequence[Sequence[dict[str, Tensor]]]
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._board, self._states = board, states
        # `functional_call` changes the module for as long as it runs, so each lane needs its own.
        self._templates = [base_layer, *(copy.deepcopy(base_layer) for _ in states[1:])]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return each row's output; outputs narrower than the widest are padded with zeros."""
        blocks, lane = self._board.route.blocks, self._board.lane
        parts = torch.split(x, [block.stop - block.start for block in blocks])
        outputs = [
            self._apply_state(lane, self._states[lane][block.seat], (part, *args), kwargs)
            for block, part in zip(blocks, parts, strict=True)
        ]
        width = max(out.shape[-1] for out in outputs)
        return torch.cat([out if out.shape[-1] == width else pad(out, (0, width - out.shape[-1])) for out in outputs])

    def _apply_state(
        self, lane: int, state: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        if type(self.base_layer) is nn.Linear:  # `functional_call` costs more than such a head itself
            return linear(args[0].to(state["weight"].dtype), state["weight"], state.get("bias"))
        out: Tensor = functional_call(self._templates[lane], state, args, kwargs)
        return out
