"""Batches whose rows belong to different adapters: one pass per factor pair, not one per adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from torch.nn.functional import linear, pad

from loraxs_search.methods.loraxs._settings import ModuleSettings

BASE = "__base__"


class AdaptedLayer(Protocol):
    """What this module needs of a layer; see `LoraXSLayer`."""

    @property
    def settings(self) -> Mapping[str, ModuleSettings]: ...

    def factor_pair(self, adapter_name: str) -> tuple[Tensor, Tensor]: ...

    def scaled_r(self, adapter_name: str) -> Tensor: ...


def check_adapter_names(adapter_names: Sequence[str], x: Tensor, *, merged: bool) -> None:
    """Raise ValueError, in PEFT's words, unless each row of x has its name and no adapter is merged."""
    if len(adapter_names) != len(x):
        raise ValueError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(adapter_names)} and {len(x)} respectively."
        )
    if merged:
        raise ValueError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )


def mixed_update(layer: AdaptedLayer, x: Tensor, y: Tensor, adapter_names: Sequence[str]) -> Tensor:
    """Add to each row of y (n, ..., out) the update of the adapter that the row names.

    Rows are grouped by factor pair; within a group A and B are applied once, cut to the largest rank, and R_k, padded
    with zeros, by one batched product.
    """
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(adapter_names):
        if name in layer.settings:
            groups.setdefault(layer.settings[name].pair_name, []).append(row)
    for rows in groups.values():
        index = torch.tensor(rows, device=x.device)
        update = _group_update(layer, x[index], [adapter_names[row] for row in rows])
        y = y.index_add(0, index, update.to(y.dtype))
    return y


def _group_update(layer: AdaptedLayer, x: Tensor, names: list[str]) -> Tensor:
    distinct = list(dict.fromkeys(names))
    widest = max(distinct, key=lambda name: layer.settings[name].rank)
    a, b = layer.factor_pair(widest)  # (k, in), (out, k)
    k = a.shape[0]
    padded = [pad(r, (0, k - r.shape[0], 0, k - r.shape[0])) for r in map(layer.scaled_r, distinct)]
    which = torch.tensor([distinct.index(name) for name in names], device=x.device)
    r_nkk = torch.stack(padded).to(a.dtype)[which]  # (n, k, k)
    z = linear(x.to(a.dtype), a)  # (n, ..., k)
    z = torch.bmm(z.flatten(1, -2) if z.ndim > 2 else z[:, None], r_nkk.transpose(1, 2)).reshape(z.shape)
    return linear(z, b)


def grouped_head_output(
    wrapper: ModulesToSaveWrapper, args: tuple[Any, ...], kwargs: dict[str, Any], adapter_names: Sequence[str]
) -> Tensor:
    """Run each row through its own adapter's copy of a module, composite ones too (PEFT's own path takes plain layers).

    The first positional argument is the batch; rows of "__base__", and of adapters without a copy, use the original.
    """
    x, *rest = args
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(adapter_names):
        rows_of.setdefault(name if name in wrapper.modules_to_save else BASE, []).append(row)
    parts = []
    for name, rows in rows_of.items():
        module = wrapper.original_module if name == BASE else wrapper.modules_to_save[name]
        parts.append(module(x[torch.tensor(rows, device=x.device)], *rest, **kwargs))
    order = torch.tensor([row for rows in rows_of.values() for row in rows], device=x.device)
    return torch.cat(parts)[order.argsort()]
