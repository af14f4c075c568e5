"""The update of a PEFT adapter as plain LoRA, for methods whose update is a product of low rank.

Whatever a tuner makes the product of, its rank is at most the method's `rank`: so many of its singular vectors are the
whole of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from loraxs_search.methods._names import ADAPTER, ROOT
from loraxs_search.methods._plain_lora import Pair, PlainLora


def as_plain_lora(model: PeftModel, *, rank: int) -> PlainLora:
    """Return an adapter's function as LoRA.

    Args:
        rank: That no layer's update is above.
    """
    config = model.active_peft_config
    saved = tuple(config.modules_to_save or ())
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    heads = tuple(f"{ROOT}{name}." for name in saved)
    return PlainLora(
        pairs=dict(_pairs(model, rank)),
        others={name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name.startswith(heads)},
        saved=saved,
        task_type=config.task_type,
        fan_in_fan_out=any(getattr(layer, "fan_in_fan_out", False) for _, layer in _layers(model)),
    )


def _layers(model: PeftModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that have an update, by full name in the base."""
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and isinstance(layer, nn.Module):
            yield name.removeprefix(ROOT), layer


@torch.no_grad()
def _pairs(model: PeftModel, rank: int) -> Iterator[tuple[str, Pair]]:
    """Yield each layer's update as A (r, in) and B (out, r), float32."""
    for name, layer in _layers(model):
        delta: Tensor = cast("Any", layer).get_delta_weight(ADAPTER)
        update = delta.detach().to("cpu", torch.float64)
        update = update.T if getattr(layer, "fan_in_fan_out", False) else update  # (out, in)
        u, s, vh = torch.linalg.svd(update, full_matrices=False)
        roots = s[:rank].sqrt()
        yield name, ((roots[:, None] * vh[:rank]).float(), (u[:, :rank] * roots).float())
