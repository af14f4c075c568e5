"""A weighted sum of adapters as one adapter: exact, since updates of one basis differ in their R alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from loraxs_search.errors import UsageError, unknown_name
from loraxs_search.factors import fingerprint
from loraxs_search.methods.loraxs.config import LoraXSConfig
from loraxs_search.methods.loraxs.layer import LoraXSLayer


def sum_config(
    configs: Mapping[str, LoraXSConfig], layers: Mapping[str, LoraXSLayer], adapters: Sequence[str]
) -> LoraXSConfig:
    """Return the config of the sum: on every module that one of them adapts, at the widest of their ranks there.

    Raises:
        UsageError: an adapter is unknown, has a head, or has other factors than the first.
    """
    for name in adapters:
        if name not in configs:
            raise UsageError(unknown_name("adapters", name, configs))
    if headed := [name for name in adapters if configs[name].modules_to_save or configs[name].pass_through]:
        raise UsageError(
            f"Only adapters without a head of their own can be summed, but {headed[0]} has one.",
            hint="heads of different tasks mean different things; merge such adapters one by one",
        )
    settings = {
        module: [layer.settings[name] for name in adapters if name in layer.settings]
        for module, layer in layers.items()
        if any(name in layer.settings for name in adapters)
    }
    for module, own in settings.items():
        if len(keys := sorted({s.factor_key for s in own})) > 1:
            raise UsageError(f"Adapters must be of one basis and factor rank to be summed, but {module} has {keys}.")
    ranks = {module: max(s.rank for s in own) for module, own in settings.items()}
    sources = {module: next(name for name in adapters if name in layers[module].settings) for module in settings}
    factors = {module: layers[module].factors_of(name) for module, name in sources.items()}
    first = configs[adapters[0]]
    return LoraXSConfig(
        r=max(ranks.values()),
        rank_pattern=ranks,
        target_modules=list(ranks),
        scale=1.0,
        sigma="none",
        basis=first.basis,
        init_seed=first.init_seed,
        factor_driver=first.factor_driver,
        factor_rank=max(s.factor_rank for own in settings.values() for s in own),
        # Those of the summed adapters, even if this machine would compute others.
        factor_fingerprints={
            module: list(fingerprint(*each.ab(ranks[module], "none"))) for module, each in factors.items()
        },
        body_fingerprint=first.body_fingerprint,
        init_std=0.0,
        fan_in_fan_out=first.fan_in_fan_out,
        task_type=first.task_type,
        base_model_name_or_path=first.base_model_name_or_path,
    )


@torch.no_grad()
def fill_sum(layer: LoraXSLayer, adapter_name: str, weights: Mapping[str, float]) -> None:
    """Set R of `adapter_name`, whose scale is 1 and whose sigma is `none`, to the weighted sum of the others' cores."""
    target = layer.loraxs_R[adapter_name]
    total: Tensor = torch.zeros_like(target)
    for name, weight in weights.items():
        if name in layer.settings:
            core = layer.core(name)
            margin = total.shape[0] - core.shape[0]
            total = total + weight * pad(core, (0, margin, 0, margin))
    target.copy_(total)
