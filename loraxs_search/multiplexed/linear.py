"""A linear layer that gives each row its own adapter: y = W x + what each update adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from loraxs_search.multiplexed._base import LayerRows, LayerUpdate
from loraxs_search.multiplexed.row_map import PassContext, RowMap, RowMapT


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


def num_positions(x: Tensor, row_map: RowMap[Any]) -> int:
    """Return T, the positions that x (n, ..., in) has for each row."""
    total = x.numel() // x.shape[-1]
    assert total % row_map.num_rows == 0  # `probe_sharing` saw that each row has as many
    return total // row_map.num_rows
