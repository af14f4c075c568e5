"""A slot's tensors under the names they have in the lone trial's model, so that snapshots fit both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraxs_search.methods import PackedAdapter, head_parameter
from loraxs_search.trial import Snapshot

_MOMENTS = ("exp_avg", "exp_avg_sq")

Moments = Sequence[tuple[Tensor, Tensor]]  # AdamW's of each tensor, in the order of `_MOMENTS`


@dataclass(frozen=True)
class SlotStateLayout:
    """Order of a slot's tensors: the adapter's, then the head's parameters.

    Args:
        head: Full names of the head's trained parameters.
        owners: Full names of the head modules that they belong to, which are stored whole.
    """

    adapter: PackedAdapter
    head: tuple[str, ...]
    owners: tuple[str, ...]

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return copies of tensors that are shaped like the slot's, on the CPU, by their names in a snapshot."""
        num_own = len(self.adapter.tensors)
        names = self._head_names()
        named = self.adapter.named(tensors[:num_own]) | dict(zip(names, tensors[num_own:], strict=True))
        return {name: value.detach().to("cpu", copy=True) for name, value in named.items()}

    def stacked(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the tensors of `named` in the slot's order and shapes."""
        return [*self.adapter.stacked(named), *(named[name] for name in self._head_names())]

    def moments(self, moments: Moments) -> dict[str, Tensor]:
        """Return the optimizer's moments as a snapshot holds them."""
        named: dict[str, Tensor] = {}
        for key, values in zip(_MOMENTS, zip(*moments, strict=True), strict=True):
            named |= {f"{key}/{name}": value for name, value in self.named(values).items()}
        return named

    @torch.no_grad()
    def restore(self, snapshot: Snapshot, parameters: Sequence[Tensor], moments: Moments) -> None:
        """Set parameters and moments to those of a snapshot."""
        for parameter, value in zip(parameters, self.stacked(snapshot.parameters), strict=True):
            parameter.copy_(value)
        if not snapshot.moments:
            return
        for key, values in zip(_MOMENTS, zip(*moments, strict=True), strict=True):
            named = {name: snapshot.moments[f"{key}/{name}"] for name in snapshot.parameters}
            for moment, value in zip(values, self.stacked(named), strict=True):
                moment.copy_(value)

    def _head_names(self) -> list[str]:
        return [head_parameter(name, self.owners) for name in self.head]
