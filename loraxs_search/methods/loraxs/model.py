"""The tuner that PEFT builds for `LORAXS` configs, and weighted sums of its adapters.

A sum is one adapter, and exact, since updates of one basis differ only in their R.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.layers import head_names, is_identity, keep_head_float32, make_identity
from loraxs_search.base_model.reading import place_pooling, pooling_of
from loraxs_search.errors import UsageError, unknown_name
from loraxs_search.factors.verify import fingerprint
from loraxs_search.methods.loraxs.config import PREFIX, LoraXSConfig, module_settings
from loraxs_search.methods.loraxs.layer import LoraXSLinear
from loraxs_search.methods.verification import check_body
from loraxs_search.records.literals import Pooling


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
        if others and others[0].pooling != config.pooling:
            raise UsageError(
                f"Adapters on one model must read the same pool, but got {others[0].pooling} and {config.pooling}.",
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
            for layer in _layers_with(model, adapter_name).values():
                layer.delete_adapter(adapter_name)
            if isinstance(model, PreTrainedModel):
                place_pooling(model, before)
            raise
        drivers = {each.settings[adapter_name].factor_key.driver for each in _layers_with(model, adapter_name).values()}
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

        It is on every module that one of them adapts, at the largest of their ranks.

        Args:
            combination_type: `linear` or `cat`, PEFT's names; both mean the sum here. A known name is left as it is.
        Raises:
            UsageError: an adapter is unknown, has its own head, or has another basis or factor rank; or a module has no
                room for the largest rank.
        """
        if combination_type not in ("linear", "cat"):
            raise UsageError(unknown_name("combination_type", combination_type, ("linear", "cat")))
        if len(adapters) != len(weights) or not adapters:
            raise UsageError(f"`weights` must be one for each adapter, but got {len(weights)} for {len(adapters)}.")
        if adapter_name in self.peft_config:
            return
        if unknown := [name for name in adapters if name not in self.peft_config]:
            raise UsageError(unknown_name("adapters", unknown[0], self.peft_config))
        configs = {name: _checked(self.peft_config[name]) for name in adapters}
        if headed := [name for name, own in configs.items() if own.modules_to_save or own.pass_through]:
            raise UsageError(
                f"Only adapters without a head of their own can be summed, but {headed[0]} has one.",
                hint="heads of different tasks mean different things; merge such adapters one by one",
            )
        rank = max(config.r for config in configs.values())
        fingerprints, factor_ranks = dict[str, list[float]](), list[int]()
        for name in configs:
            for module, layer in _layers_with(self.model, name).items():
                known = {layer.settings[other].factor_key for other in configs if other in layer.settings}
                if len(known) > 1:
                    raise UsageError(
                        f"Adapters must be of one basis and factor rank to be summed, but {module} has {sorted(known)}."
                    )
                # Those of the summed adapters, even if this machine would compute others.
                fingerprints[module] = list(fingerprint(*layer.factors_of(name).ab(rank, "none")))
                factor_ranks.append(layer.settings[name].factor_key.rank)
        first = configs[adapters[0]]
        self.peft_config[adapter_name] = LoraXSConfig(
            r=rank,
            target_modules=list(fingerprints),
            sigma="none",
            basis=first.basis,
            init_seed=first.init_seed,
            factor_driver=first.factor_driver,
            factor_rank=max(factor_ranks),
            factor_fingerprints=fingerprints,
            body_fingerprint=first.body_fingerprint,
            init_std=0.0,
            task_type=first.task_type,
            base_model_name_or_path=first.base_model_name_or_path,
        )
        try:
            self.inject_adapter(self.model, adapter_name)
        except BaseException:
            del self.peft_config[adapter_name]
            raise
        for layer in _layers_with(self.model, adapter_name).values():
            total: Tensor = layer.loraxs_R[adapter_name]  # zero; its scale is 1, its sigma `none`
            for name, weight in zip(adapters, weights, strict=True):
                if name in layer.settings:
                    core = layer.core(name)
                    total += weight * pad(core, (0, rank - len(core)) * 2)

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
        config, layer = _checked(peft_config), target
        if not isinstance(layer, LoraXSLinear):
            # torch's attention reads the weight of its `out_proj` and never calls it: an adapter there does nothing.
            if not isinstance(target, nn.Linear | Conv1D) or isinstance(parent, nn.MultiheadAttention):
                raise UsageError(
                    f"`target_modules` must name linear layers, but {current_key} is a {type(target).__name__} "
                    f"in a {type(parent).__name__}.",
                    hint="name the layers inside it, or leave it out with exclude_modules",
                )
            layer = LoraXSLinear(target, current_key)
        settings = module_settings(config, current_key, layer.out_features, layer.in_features)
        layer.update_layer(adapter_name, settings, config)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own (0.21.2) copies `child.weight` on unloading, which a composite head such as RoBERTa's has not.
        # Placing tensors is not needed here: update_layer has put them on the base weight's device.
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:  # PEFT would pass over it without a word
            raise UsageError(
                "`adapter_names` must be left out: a LoRA-XS model in PEFT computes all rows with its active adapters.",
                hint="`loraxs_search.AdapterBank` computes rows of many adapters in one pass",
            )
        yield


def _checked(config: PeftConfig) -> LoraXSConfig:
    assert isinstance(config, LoraXSConfig)  # PEFT makes this tuner for no others
    return config


def _layers_with(model: nn.Module, adapter_name: str) -> dict[str, LoraXSLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LoraXSLinear) and adapter_name in m.settings}
