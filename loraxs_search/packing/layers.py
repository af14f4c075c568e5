"""Layers that serve many trials in one pass: y = W x + B C_k A x for the rows of slot k.

Shapes: x (n, ..., in) with rows first, A (k, in), B (out, k), C (seats, k, k) float32: each slot's R with its scale and
singular values folded in, zero outside the slot's own rank. A and B are orthonormal, the same for every sigma.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, pad
from transformers.pytorch_utils import Conv1D

from loraxs_search.packing.route import Board, Run


@dataclass(frozen=True)
class Pair:
    """Factors cut to the pack's widest rank: A (k, in), B (out, k), in the dtype of the base weight."""

    a: Tensor
    b: Tensor


class PackedLinear(nn.Module):
    """Stands in for an `nn.Linear` or `Conv1D` while slots adapt it; the layer inside is not touched."""

    def __init__(self, base_layer: nn.Module, board: Board) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._board = board
        self._pairs: tuple[Pair, ...] = ()
        self._pair_of_seat: tuple[int | None, ...] = ()

    def seat(self, cores: nn.Parameter, pairs: tuple[Pair, ...], pair_of_seat: tuple[int | None, ...]) -> None:
        """Serve these slots from now on.

        Args:
            cores: C, shape (seats, k, k), float32.
            pair_of_seat: Index into `pairs` for each seat; None where the slot does not adapt this layer.
        """
        self.cores, self._pairs, self._pair_of_seat = cores, pairs, pair_of_seat

    @property
    def weight(self) -> Tensor:
        """The base's own weight, for models that ask a layer for it."""
        return self.base_layer.get_parameter("weight")

    @property
    def matrix(self) -> Tensor:
        """The base weight as the function computes it, shape (out, in)."""
        return self.weight.T if isinstance(self.base_layer, Conv1D) else self.weight

    def forward(self, x: Tensor) -> Tensor:
        route = self._board.route
        runs = route.runs(self._pair_of_seat)
        if not runs:
            y: Tensor = self.base_layer(x)
            return y
        return _PackedUpdate.apply(x, self.cores, self, runs, self._pairs, route.num_rows)  # type: ignore[no-any-return, no-untyped-call]


class _PackedUpdate(torch.autograd.Function):
    """Base layer and update as one step, so that sums are made in place and x is not kept for backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cores: Tensor, layer: PackedLinear, runs: tuple[Run, ...], pairs: tuple[Pair, ...], rows: int
    ) -> Tensor:
        y = layer.base_layer(x)
        x_3d, y_3d = x.reshape(rows, -1, x.shape[-1]), y.view(rows, -1, y.shape[-1])  # (n, T, in), (n, T, out)
        kept = []
        for run in runs:
            pair = pairs[run.pair]
            z = linear(x_3d[run.start : run.stop], pair.a)  # (m, T, k)
            c = cores.to(z.dtype)[run.seats]  # (m, k, k)
            u = torch.bmm(z, c.transpose(1, 2))  # (m, T, k)
            y_3d[run.start : run.stop].flatten(0, 1).addmm_(u.flatten(0, 1), pair.b.T)
            kept += [z, c]
        ctx.save_for_backward(*kept)
        ctx.layer, ctx.runs, ctx.pairs, ctx.rows = layer, runs, pairs, rows
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0].contiguous()
        dx = torch.matmul(dy, ctx.layer.matrix) if ctx.needs_input_grad[0] else None
        dy_3d = dy.view(ctx.rows, -1, dy.shape[-1])
        dx_3d = None if dx is None else dx.view(ctx.rows, -1, dx.shape[-1])
        d_cores = torch.zeros_like(ctx.layer.cores)  # float32, whatever the pass computes in
        kept = iter(ctx.saved_tensors)
        for run, z, c in zip(ctx.runs, kept, kept, strict=True):
            pair = ctx.pairs[run.pair]
            g = torch.matmul(dy_3d[run.start : run.stop], pair.b)  # (m, T, k)
            per_row = torch.bmm(g.transpose(1, 2), z)  # (m, k, k)
            d_cores.index_add_(0, run.seats, per_row.to(d_cores.dtype))
            if dx_3d is not None:
                dx_3d[run.start : run.stop].flatten(0, 1).addmm_(torch.bmm(g, c).flatten(0, 1), pair.a)
        return dx, d_cores, None, None, None, None


class PackedHead(nn.Module):
    """Stands in for a head module: each slot's rows go through its own weights, which may have their own label count."""

    def __init__(self, base_layer: nn.Module, board: Board) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._board = board
        self._states: tuple[dict[str, Tensor], ...] = ()

    def seat(self, states: tuple[dict[str, Tensor], ...]) -> None:
        """Serve these slots from now on; each state holds the head module's parameters by name."""
        self._states = states

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return each row's output; outputs narrower than the widest are padded with zeros."""
        blocks = self._board.route.blocks
        parts = x.split([block.stop - block.start for block in blocks])
        outputs = [
            self._apply_state(self._states[block.seat], part, *args, **kwargs)
            for block, part in zip(blocks, parts, strict=True)
        ]
        width = max(out.shape[-1] for out in outputs)
        return torch.cat([out if out.shape[-1] == width else pad(out, (0, width - out.shape[-1])) for out in outputs])

    def _apply_state(self, state: dict[str, Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if type(self.base_layer) is nn.Linear:  # `functional_call` costs more than such a head itself
            return linear(x.to(state["weight"].dtype), state["weight"], state.get("bias"))
        out: Tensor = functional_call(self.base_layer, state, (x, *args), kwargs)
        return out
