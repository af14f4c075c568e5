"""The tuner that PEFT builds for `LORAXS` configs, and the check that it stands on the body of the training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.layers import head_names, is_identity, keep_head_float32, make_identity
from loraxs_search.base_model.reading import place_pooling, pooling_of
from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.factors.store import agrees, fingerprint_of_all
from loraxs_search.methods._base import ROOT
from loraxs_search.methods.loraxs.config import PREFIX, LoraXSConfig, ModuleSettings
from loraxs_search.methods.loraxs.layer import LoraXSLinear
from loraxs_search.methods.stored import expanded
from loraxs_search.records.codec import Pooling


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
        configs = cast("dict[str, LoraXSConfig]", self.peft_config)  # PEFT makes this tuner for no others
        config = configs[adapter_name]
        others = [other for name, other in configs.items() if name != adapter_name]
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

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Read the layout of a search's files too; see `methods.stored`."""
        trained = f".modules_to_save.{adapter_name}."  # PEFT has put it into the names of the head, not of its scales
        named = {name.replace(trained, "."): name for name in state_dict}
        modules = [name.removeprefix(ROOT) for name in _layers_with(model, adapter_name)]
        read = expanded({name: state_dict[own] for name, own in named.items()}, modules)
        own = {named.get(name, name): value for name, value in read.items()}
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, own)
        return remapped

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
        config, layer = cast("LoraXSConfig", peft_config), target
        if not isinstance(layer, LoraXSLinear):
            # torch's attention reads the weight of its `out_proj` and never calls it: an adapter there does nothing.
            if not isinstance(target, nn.Linear | Conv1D) or isinstance(parent, nn.MultiheadAttention):
                raise UsageError(
                    f"`target_modules` must name linear layers, but {current_key} is a {type(target).__name__} "
                    f"in a {type(parent).__name__}.",
                    hint="name the layers inside it, or leave it out with exclude_modules",
                )
            layer = LoraXSLinear(target, current_key)
        settings = ModuleSettings.of(config, current_key, layer.out_features, layer.in_features)
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


def _layers_with(model: nn.Module, adapter_name: str) -> dict[str, LoraXSLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LoraXSLinear) and adapter_name in m.settings}


# ---- the fingerprint of the base's body ------------------------------------------------------------------------------
# R has a meaning where the adapted weights are those of the training, which the factors' fingerprints check. The model
# is the one that was scored only if embeddings, norms and the other layers are the same too: a few numbers identify
# them.
# Rounding to bfloat16 comes first, so the same checkpoint gives the same numbers up to the order of a sum; loaded in
# float16, one number in sixteen is rounded to another neighbour, which moves them by some 1e-3.
_TOLERANCE, _FLOAT16_TOLERANCE = 1e-4, 1e-2


def body_fingerprint(model: nn.Module) -> tuple[float, ...]:
    """Return three numbers of a sample of the base's own weights below its head, whatever adapters are on it.

    Empty while weights are still on the meta device.
    """
    tensors = _tensors(model)
    return () if any(tensor.is_meta for tensor in tensors) else fingerprint_of_all(tensors)


def check_body(expected: Sequence[float], model: nn.Module) -> None:
    """Refuse a body whose fingerprint differs from the one in an adapter's config.

    Raises:
        BaseModelError: they differ; the message has both.
    """
    if not expected:  # an adapter that no search has made has none
        return
    actual, halved = body_fingerprint(model), any(tensor.dtype == torch.float16 for tensor in _tensors(model))
    if actual and not agrees(expected, actual, tolerance=_FLOAT16_TOLERANCE if halved else _TOLERANCE):
        raise BaseModelError(
            f"The base's body must have the fingerprint {list(expected)}, in which the adapter was trained, "
            f"but got {list(actual)}: its adapted layers are the same, something else below its head is not.",
            hint="load the base that the adapter was trained on, at the same revision, not quantised, and put adapters "
            "on it before it is changed (resized embeddings, merged adapters); to start a new adapter from this config "
            "instead, clear its `body_fingerprint` and `factor_fingerprints`",
        )


def _tensors(model: nn.Module) -> list[Tensor]:
    """Return the body's parameters by name; numbers of a quantised layer are codes, and it is another body anyway."""
    parameters = dict(_own(getattr(model, getattr(model, "base_model_prefix", ""), model), ""))
    return [parameters[name] for name in sorted(parameters) if parameters[name].is_floating_point()]


def _own(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters that `module` had before PEFT wrapped any of its layers, by the names they had then."""
    for wrapped in ("base_layer", "original_module"):
        if isinstance(inner := getattr(module, wrapped, None), nn.Module):
            yield from _own(inner, prefix)
            return
    for name, parameter in module.named_parameters(recurse=False):
        yield f"{prefix}{name}", parameter
    for name, child in module.named_children():
        yield from _own(child, f"{prefix}{name}.")
