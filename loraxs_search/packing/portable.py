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


@dataclass(frozen=True)
class Layout:
    """Order of a slot's tensors: one R stack (modules, r, r), then the head's parameters.

    Args:
        modules: Full names of the adapted layers, in the order of the stack.
        head: Full names of the head's trained parameters.
        owners: Full names of the head modules that they belong to, which PEFT stores whole.
    """

    modules: tuple[str, ...]
    head: tuple[str, ...]
    owners: tuple[str, ...]

    def named(self, tensors: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Name tensors that are shaped like the slot's; copies on the CPU, None left out."""
        r, *head = tensors
        names = [*map(_r_name, self.modules), *map(self._head_name, self.head)]
        values = [*([None] * len(self.modules) if r is None else r), *head]
        return {n: v.detach().to("cpu", copy=True) for n, v in zip(names, values, strict=True) if v is not None}

    def stacked(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the tensors of `named` in the slot's order and shapes."""
        r = torch.stack([named[_r_name(module)] for module in self.modules])
        return [r, *(named[self._head_name(name)] for name in self.head)]

    def moments(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the optimizer's moments as a snapshot holds them."""
        found: dict[str, Tensor] = {}
        for key in _MOMENTS:
            named = self.named([optimizer.state.get(parameter, {}).get(key) for parameter in parameters])
            found |= {f"{key}/{name}": value for name, value in named.items()}
        return found

    @torch.no_grad()
    def restore(self, snapshot: Snapshot, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Set parameters and moments to those of a snapshot."""
        for parameter, value in zip(parameters, self.stacked(snapshot.parameters), strict=True):
            parameter.copy_(value)
        if not snapshot.moments:
            return
        stacks = [
            self.stacked({name: snapshot.moments[f"{key}/{name}"] for name in snapshot.parameters}) for key in _MOMENTS
        ]
        for parameter, *values in zip(parameters, *stacks, strict=True):
            moments = {k: v.to(parameter.device, copy=True) for k, v in zip(_MOMENTS, values, strict=True)}
            step = torch.tensor(float(snapshot.step), device=parameter.device)
            optimizer.state[parameter] = {"step": step, **moments}

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
