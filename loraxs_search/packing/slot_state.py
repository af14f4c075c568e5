"""A slot's tensors under the names they have in the lone trial's PEFT model, so that snapshots fit both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from loraxs_search.records import AdapterSize
from loraxs_search.trial import Snapshot

_ROOT = "base_model.model."
_MOMENTS = ("exp_avg", "exp_avg_sq")

Moments = Sequence[tuple[Tensor, Tensor]]  # AdamW's of each tensor, in the order of `_MOMENTS`


@dataclass(frozen=True)
class SlotStateLayout:
    """Order of a slot's tensors: one R stack (modules, r, r), then the head's parameters.

    Args:
        modules: Full names of the adapted layers, in the order of the stack.
        head: Full names of the head's trained parameters.
        owners: Full names of the head modules that they belong to, which PEFT stores whole.
    """

    modules: tuple[str, ...]
    head: tuple[str, ...]
    owners: tuple[str, ...]

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Name tensors that are shaped like the slot's; copies on the CPU."""
        r, *head = tensors
        names = [*map(_r_name, self.modules), *map(self._head_name, self.head)]
        return {n: v.detach().to("cpu", copy=True) for n, v in zip(names, [*r, *head], strict=True)}

    def stacked(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the tensors of `named` in the slot's order and shapes."""
        r = torch.stack([named[_r_name(module)] for module in self.modules])
        return [r, *(named[self._head_name(name)] for name in self.head)]

    def moments(self, moments: Moments) -> dict[str, Tensor]:
        """Return the optimizer's moments as a snapshot holds them."""
        found: dict[str, Tensor] = {}
        for key, values in zip(_MOMENTS, zip(*moments, strict=True), strict=True):
            found |= {f"{key}/{name}": value for name, value in self.named(values).items()}
        return found

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

    def size(self, parameters: Sequence[Tensor]) -> AdapterSize:
        """Count what the adapter stores: R, head, and the bytes of its file."""
        r, *head = (parameter.detach().cpu().contiguous() for parameter in parameters)
        stored = {f"{_ROOT}{module}.loraxs_R": value for module, value in zip(self.modules, r, strict=True)}
        stored |= {f"{_ROOT}{name}": value for name, value in zip(self.head, head, strict=True)}
        content = safetensors.torch.save(stored, {"format": "pt"})
        return AdapterSize(r.numel(), sum(value.numel() for value in head), len(content))

    def _head_name(self, name: str) -> str:
        owner = next(owner for owner in self.owners if name.startswith(f"{owner}."))
        return f"{_ROOT}{owner}.modules_to_save.default.{name.removeprefix(f'{owner}.')}"


def _r_name(module: str) -> str:
    return f"{_ROOT}{module}.loraxs_R.default"
