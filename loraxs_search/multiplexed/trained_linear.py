"""A linear layer whose updates are trained: base and updates as one step of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from loraxs_search.base_model import matrix
from loraxs_search.multiplexed._base import LayerRows, TrainableUpdate
from loraxs_search.multiplexed.linear import AdaptedLinear, num_positions
from loraxs_search.multiplexed.row_map import PassContext, RowMapT


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
