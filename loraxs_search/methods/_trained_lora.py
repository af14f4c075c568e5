"""PEFT's LoRA layers as trials use them: how A and B start, what PiSSA does to a base, and the whole as plain LoRA."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear
from peft.utils import get_peft_model_state_dict
from torch import nn

from loraxs_search.base_model import matrix
from loraxs_search.factors import FactorStore
from loraxs_search.methods._base import Sizes
from loraxs_search.methods._names import ADAPTER, ROOT
from loraxs_search.methods._plain_lora import Pair, PlainLora

_KEPT = "weight_before_lora"


def initial_pairs(config: LoraConfig, sizes: Sizes, seed: int) -> dict[str, Pair]:
    """Draw the A (r, in) and B (out, r) that layers start with, float32 on the CPU, one layer after the other.

    They are what PEFT draws with torch's generator at `seed` for a float32 base that has just these layers adapted.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return {name: _pair(_layer(_empty(*size), config)) for name, size in sizes.items()}


def scaling_of(config: LoraConfig) -> float:
    """Return the factor of B A, as PEFT computes it."""
    return float(config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r))


@torch.no_grad()
def draw_pairs(model: PeftModel, seed: int) -> None:
    """Start A and B of a model's layers in float32: PEFT draws them in the dtype of the base."""
    layers = lora_layers(model)
    sizes = {name: (matrix(base).shape[0], matrix(base).shape[1]) for name, base in _bases(layers).items()}
    for name, pair in initial_pairs(_config(model), sizes, seed).items():
        for own, drawn in zip(_pair(layers[name]), pair, strict=True):
            own.copy_(drawn)


def lora_layers(model: nn.Module) -> dict[str, Linear]:
    """Return the layers with a LoRA adapter, by full name in the base, in model order."""
    return {name.removeprefix(ROOT): layer for name, layer in model.named_modules() if isinstance(layer, Linear)}


def as_plain_lora(model: PeftModel) -> PlainLora:
    """Return the same function as LoRA on the base as it was loaded.

    PiSSA's is of twice the rank: what was trained, less what it began with, which the base still has.
    """
    config, layers = _config(model), lora_layers(model)
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    return PlainLora(
        pairs={name: _added_pair(layer, config) for name, layer in layers.items()},
        others={key: value.detach().cpu().contiguous() for key, value in state.items() if ".lora_" not in key},
        saved=config.modules_to_save or (),
        task_type=config.task_type,
        fan_in_fan_out=any(layer.fan_in_fan_out for layer in layers.values()),
    )


# ---- a base whose weights an init changes ----------------------------------------------------------------------------
@contextmanager
def own_weights(model: nn.Module, names: Iterable[str], factors: FactorStore | None) -> Iterator[None]:
    """Give these layers, by full name, weights of their own to be changed; the first ones are restored if that fails.

    They are the checkpoint's, on the CPU, so that what is made of them is the same on any device and in any precision;
    afterwards they are where the first ones are. Others hold those too: the model of another task, and whoever reads
    the bare body in another thread.

    Args:
        factors: Knows the checkpoint's weights; None where the model has them itself.
    """
    try:
        for name in names:
            layer = model.get_submodule(name)
            weight = layer.get_parameter("weight")
            object.__setattr__(layer, _KEPT, weight)  # no parameter of the model: it is neither cast nor moved
            exact = weight if factors is None else factors.checkpoint_weight(weight)
            own = exact.detach().to("cpu", copy=True)
            layer.register_parameter("weight", nn.Parameter(own, requires_grad=False))
        yield
        for layer in model.modules():
            if (kept := _kept(layer)) is not None:
                trained = layer.get_parameter("weight")
                trained.data = trained.data.to(kept)
    except BaseException:
        restore_weights(model)
        raise


def restore_weights(model: nn.Module) -> None:
    """Give layers the very parameters back that they had before `own_weights`."""
    for layer in model.modules():
        if (weight := _kept(layer)) is not None:
            layer.register_parameter("weight", weight)
            delattr(layer, _KEPT)


# ---- inside ----------------------------------------------------------------------------------------------------------
def _config(model: PeftModel) -> LoraConfig:
    config = model.peft_config[ADAPTER]
    assert isinstance(config, LoraConfig)
    return config


def _kept(layer: nn.Module) -> nn.Parameter | None:
    """Return the parameter in whose place a layer has a weight of its own."""
    weight: nn.Parameter | None = vars(layer).get(_KEPT)
    return weight


def _layer(base: nn.Module, config: LoraConfig) -> Linear:
    """Put LoRA on one layer, as PEFT does on a model."""
    return Linear(base, ADAPTER, config, r=config.r, lora_alpha=config.lora_alpha)


def _empty(out_features: int, in_features: int) -> nn.Linear:
    """Return a float32 layer without values, for which nothing is drawn."""
    return nn.Linear(in_features, out_features, bias=False, device="meta").to_empty(device="cpu")


def _bases(layers: Mapping[str, Linear]) -> dict[str, nn.Module]:
    return {name: layer.get_base_layer() for name, layer in layers.items()}


def _pair(layer: Linear) -> Pair:
    a, b = (side.get_submodule(ADAPTER).get_parameter("weight") for side in (layer.lora_A, layer.lora_B))
    return a.detach(), b.detach()


def _added_pair(layer: Linear, config: LoraConfig) -> Pair:
    """Return A and scaling * B of what a layer adds to the weight that its base was loaded with."""
    a, b = _pair(layer)
    scaling, kept = layer.scaling[ADAPTER], _kept(layer.get_base_layer())
    if kept is None:
        return a, scaling * b
    weight = kept.detach().to("cpu", torch.float32)
    weight = weight.T if layer.fan_in_fan_out else weight  # (out, in)
    original = _empty(weight.shape[0], weight.shape[1])
    original.weight.data = weight.clone()
    own = copy.copy(config)
    own.fan_in_fan_out = False
    first_a, first_b = (side.to(a.device) for side in _pair(_layer(original, own)))
    return torch.cat([a, first_a]), scaling * torch.cat([b, -first_b], dim=1)
