"""The tuner that PEFT builds for `LORAXS` configs, and weighted sums of its adapters.

A sum is one adapter, and exact, since updates of one basis differ only in their R.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, ModulesToSaveWrapper
from peft.utils.quantization_utils import get_quantization_kwargs, resolve_quantization_backend
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.layers import head_names, is_identity, keep_head_float32, make_identity
from loraxs_search.base_model.reading import place_pooling, pooling_of
from loraxs_search.errors import TargetModulesError, UsageError, unknown_name
from loraxs_search.factors.verify import fingerprint
from loraxs_search.methods.loraxs.config import PREFIX, LoraXSConfig, module_settings
from loraxs_search.methods.loraxs.layer import BASE, LoraXSLinear, grouped_head_output
from loraxs_search.methods.verification import check_body
from loraxs_search.records.literals import Pooling


def _sum_config(
    configs: Mapping[str, LoraXSConfig], layers: Mapping[str, LoraXSLinear], adapters: Sequence[str]
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


class LoraXSModel(BaseTuner):
    """Wraps the targeted linear layers of a model in `LoraXSLinear`.

    Built by `get_peft_model(model, LoraXSConfig(...))`; not called directly.
    """

    prefix = PREFIX
    tuner_layer_cls = LoraXSLinear
    # PEFT annotates one table in two ways.
    target_module_mapping = cast("dict[str, list[str]]", TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to every targeted layer or, when one of them refuses, to none.

        Layers of `pass_through`, which the adapter neither trains nor stores, become the identity, and heads read the
        config's `pooling`; the config records which driver computed the factors.

        Raises:
            BaseModelError: the config has the fingerprint of another body.
            UsageError: an adapter on the model trains other layers of the head, or reads another pool.
        """
        config = _checked(self.peft_config[adapter_name])
        others = [_checked(other) for name, other in self.peft_config.items() if name != adapter_name]
        if others and (apart := {config.pooling, *(other.pooling for other in others)} - {others[0].pooling}):
            raise UsageError(
                f"Adapters on one model must read the same pool, but got {others[0].pooling} and {apart.pop()}.",
                hint="load each of them on its own base",
            )
        saved = config.modules_to_save or ()
        trained = [name for other in others for name in other.modules_to_save or ()]
        changed = [name for name in config.pass_through if others and not is_identity(model.get_submodule(name))]
        nested = [name for own in saved for name in trained if name.startswith(f"{own}.")]
        if wrong := [*changed, *nested]:
            raise UsageError(
                "An adapter must train the same layers of the head as those that are on the model, but they differ in "
                f"{wrong[0]}.",
                hint="load each of them on its own base",
            )
        make_identity(model, config.pass_through)
        before: Pooling = "class"
        if isinstance(model, PreTrainedModel):
            before = pooling_of(model)
            place_pooling(model, config.pooling)
            if config.factor_fingerprints:  # a stored adapter, whose head was trained in float32
                heads = [model.get_submodule(name) for name in saved if name.split(".")[0] in head_names(model)]
                if any(p.dtype in (torch.bfloat16, torch.float16) for head in heads for p in head.parameters()):
                    keep_head_float32(model)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            check_body(config.body_fingerprint, model)
        except BaseException:
            for layer in _layers_with(model, adapter_name):
                layer.delete_adapter(adapter_name)
            if isinstance(model, PreTrainedModel):
                place_pooling(model, before)
            raise
        drivers = {layer.settings[adapter_name].driver for layer in _layers_with(model, adapter_name)}
        if len(drivers) == 1:
            config.factor_driver = drivers.pop()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As PEFT's. What a pooled head reads stays with the model in this process, and a warning says so."""
        merged = super().merge_and_unload(*args, **kwargs)
        if isinstance(merged, PreTrainedModel) and (pooling := pooling_of(merged)) != "class":
            warnings.warn(
                f"This model's head reads `{pooling}` pooling, which `save_pretrained` does not save: "
                "`loraxs-search pull TASK --format merged` writes a folder that records it.",
                stacklevel=2,
            )
        return merged

    @torch.no_grad()
    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Add the adapter whose update is the weighted sum of others': exact, whatever their ranks, scales and sigmas.

        Args:
            combination_type: `linear` or `cat`, PEFT's names; both mean the sum here. A known name is left as it is.
        Raises:
            UsageError: an adapter is unknown, has its own head, or has another basis or factor rank.
        """
        if combination_type not in ("linear", "cat"):
            raise UsageError(unknown_name("combination_type", combination_type, ("linear", "cat")))
        if len(adapters) != len(weights) or not adapters:
            raise UsageError(f"`weights` must be one for each adapter, but got {len(weights)} for {len(adapters)}.")
        if adapter_name in self.peft_config:
            return
        layers = {name: module for name, module in self.model.named_modules() if isinstance(module, LoraXSLinear)}
        configs = {name: _checked(config) for name, config in self.peft_config.items()}
        self.peft_config[adapter_name] = _sum_config(configs, layers, adapters)
        try:
            self.inject_adapter(self.model, adapter_name)
        except BaseException:
            del self.peft_config[adapter_name]
            raise
        summed: dict[str, float] = {}
        for name, weight in zip(adapters, weights, strict=True):
            summed[name] = summed.get(name, 0.0) + weight
        for layer in _layers_with(self.model, adapter_name):
            target = layer.loraxs_R[adapter_name]  # its scale is 1, its sigma `none`
            total: Tensor = torch.zeros_like(target)
            for name, weight in summed.items():
                if name in layer.settings:
                    core = layer.core(name)
                    margin = total.shape[0] - core.shape[0]
                    total = total + weight * pad(core, (0, margin, 0, margin))
            target.copy_(total)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = _checked(peft_config)
        layer = target
        if not isinstance(layer, LoraXSLinear):
            backend = resolve_quantization_backend(target, **get_quantization_kwargs(self.model))
            quantised = backend is not None and backend.layer_type == "linear"
            sized = hasattr(target, "in_features") and hasattr(target, "out_features")
            custom = sized and getattr(getattr(target, "weight", None), "ndim", 0) == 2
            is_linear = quantised or custom or isinstance(target, (nn.Linear, Conv1D))
            # torch's attention reads the weight of its `out_proj` and never calls it: an adapter there does nothing.
            if not is_linear or isinstance(parent, nn.MultiheadAttention):
                raise TargetModulesError(
                    f"`target_modules` must name linear layers, but {current_key} is a {type(target).__name__} "
                    f"in a {type(parent).__name__}.",
                    hint="name the layers inside it, or leave it out with exclude_modules",
                )
            layer = LoraXSLinear(target, backend=backend, fan_in_fan_out=config.fan_in_fan_out)
        settings = module_settings(config, current_key, layer.out_features, layer.in_features)
        layer.update_layer(adapter_name, settings, config, current_key)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own (0.21.2) copies `child.weight` on unloading, which a composite head such as RoBERTa's has not.
        # Placing tensors is not needed here: update_layer has put them on the base weight's device.
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        names: Sequence[str] | None = kwargs.pop("adapter_names", None)
        handles: list[RemovableHandle] = []
        if names is not None:
            if self.training:
                # A checkpointed layer runs again in backward, when the names are gone.
                raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
            if unknown := sorted(set(names) - set(self.peft_config) - {BASE}):
                raise ValueError(
                    f"`adapter_names` must be among {[*self.peft_config, BASE]}, but got {', '.join(unknown)}."
                )
            own = [name for name in names for _ in range(kwargs.get("num_beams") or 1)]
            replace = partial(grouped_head_output, adapter_names=own)
            for module in self.modules():
                if isinstance(module, LoraXSLinear):
                    handle = module.register_forward_pre_hook(
                        lambda _, args, given: (args, {**given, "adapter_names": own}), with_kwargs=True
                    )
                    handles.append(handle)
                elif isinstance(module, ModulesToSaveWrapper):
                    handles.append(module.register_forward_hook(replace, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _checked(config: PeftConfig) -> LoraXSConfig:
    assert isinstance(config, LoraXSConfig)  # PEFT makes this tuner for no others
    return config


def _layers_with(model: nn.Module, adapter_name: str) -> list[LoraXSLinear]:
    return [m for m in model.modules() if isinstance(m, LoraXSLinear) and adapter_name in m.settings]
