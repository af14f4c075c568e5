"""R of one trial in a pack: a stack, where the lone trial's model has a tensor for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from loraxs_search.methods._base import PackedAdapter, Sizes
from loraxs_search.methods._names import ADAPTER, ROOT, R
from loraxs_search.methods.loraxs._settings import ModuleSettings, initial_r, module_settings
from loraxs_search.methods.loraxs._start import started_r
from loraxs_search.methods.loraxs.config import LoraXSConfig


class PackedR(PackedAdapter):
    """R of shape (modules, r, r), float32, drawn as the lone trial draws it.

    r is the largest rank of a module. Those of smaller ones stand in the top left corner; what is around them is zero
    and gets no gradient, since `PackedCores` multiplies it with zero.

    Args:
        sizes: Of the adapted layers, in model order, which is the stack's.
    """

    def __init__(self, config: LoraXSConfig, sizes: Sizes, device: torch.device) -> None:
        self.settings: dict[str, ModuleSettings] = {
            name: module_settings(config, name, *size) for name, size in sizes.items()
        }
        self.modules = tuple(self.settings)
        drawn = [_initial(config, settings, name) for name, settings in self.settings.items()]
        self.r = _stack(drawn).to(device).requires_grad_()

    @property
    def tensors(self) -> list[Tensor]:
        return [self.r]

    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        (stack,) = values
        named = zip(self.settings.items(), stack, strict=True)
        return {_trained_name(module): r[: own.rank, : own.rank] for (module, own), r in named}

    def stacked(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        return [_stack([named[_trained_name(module)] for module in self.modules])]


def _stack(matrices: Sequence[Tensor]) -> Tensor:
    rank = max(len(matrix) for matrix in matrices)
    return torch.stack([pad(matrix, (0, rank - len(matrix)) * 2) for matrix in matrices])


def _initial(config: LoraXSConfig, settings: ModuleSettings, module: str) -> Tensor:
    start = started_r(config.start_from, settings, module) if config.start_from else None
    return initial_r(config, settings, module) if start is None else start


def _trained_name(module: str) -> str:
    return f"{ROOT}{module}.{R}.{ADAPTER}"
