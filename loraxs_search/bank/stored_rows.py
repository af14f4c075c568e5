"""The adapters of a batch's rows, as the layers of the base meet them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from loraxs_search.bank.layout import Layout
from loraxs_search.methods.loraxs.packed import FactorPairs, add_core_update_
from loraxs_search.multiplexed import HeadState, LayerRows, RowMap


@dataclass(frozen=True)
class StoredRows:
    """The adapters of neighbouring rows, all of one layout.

    Args:
        layout: None where rows name no adapter.
        vectors: Shape (rows, width), or (1, width) where all rows name the same adapter.
        heads: Modules by name that a layer of the head takes its shape and what is not stored from.
    """

    layout: Layout | None
    vectors: Tensor
    heads: Mapping[str, nn.Module]

    def adapts(self, module: str) -> bool:
        """Whether these adapters have an R for a module."""
        return self.layout is not None and module in self.layout.cores

    def head_state(self, name: str) -> HeadState:
        """Return a module of the head with what is stored of it."""
        stored = {} if self.layout is None else self.layout.head_parameters(self.vectors, name)
        if len(self.vectors) == 1:
            return HeadState(self.heads[name], {key: value[0] for key, value in stored.items()})
        return HeadState(self.heads[name], stored, per_row=True)


class StoredCores:
    """What the adapters of a bank add to one layer; a `LayerUpdate`.

    Args:
        module: Full name of the layer.
    """

    def __init__(self, module: str, pairs: FactorPairs) -> None:
        self._module, self._pairs = module, pairs

    def adapts(self, row_map: RowMap[StoredRows]) -> bool:
        return any(segment.adapter.adapts(self._module) for segment in row_map.segments)

    def add_(self, x: Tensor, y: Tensor, rows: LayerRows[RowMap[StoredRows]]) -> tuple[Tensor, ...]:
        for segment in rows.row_map.segments:
            stored = segment.adapter
            if stored.layout is None or not stored.adapts(self._module):
                continue
            place = stored.layout.cores[self._module]
            cores = stored.layout.core(stored.vectors, self._module).to(x.dtype)  # (m or 1, r, r)
            at = rows.positions(segment.start, segment.stop)
            add_core_update_(x[at], y[at], self._pairs.pair(self._module, place.factor_key, place.rank), cores)
        return ()
