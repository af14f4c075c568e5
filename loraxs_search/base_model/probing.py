"""Whether a base computes the same in another way, and its layers row by row: two made-up rows tell."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

_TOLERANCE = 1e-2  # relative: beyond a half-precision base's rounding, below what another input makes of a layer


def made_up_rows(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return inputs of two rows, of 12 tokens and of 9 and padding: `input_ids` and `attention_mask`, (2, 12).

    Raises:
        ValueError: short rows would change the model for good, as they do BigBird.
    """
    if getattr(model.config, "attention_type", None) == "block_sparse":
        raise ValueError("`attention_type` must not be block_sparse: it becomes another one with the first short row.")
    ids = torch.arange(24, device=model.device).view(2, 12) % model.config.vocab_size
    real = torch.arange(12, device=ids.device) < torch.tensor([[12], [9]], device=ids.device)
    return {"input_ids": ids.masked_fill(~real, model.config.pad_token_id), "attention_mask": real.long()}


def dummy_rows(model: PreTrainedModel, num_tokens: int, length: int = 32) -> dict[str, Tensor]:
    """Return inputs of about so many tokens in rows of `length`, for timing: `input_ids` and `attention_mask`."""
    ids = torch.arange(max(1, num_tokens // length) * length, device=model.device).view(-1, length)
    ids = ended(ids % model.config.vocab_size, model.config)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def layers_beyond_rows(model: PreTrainedModel, names: Iterable[str]) -> frozenset[str]:
    """Return those of these linear layers whose input is not the batch's rows, one after the other.

    DeBERTa gives some layers embeddings of positions, which all rows share; Longformer and XLNet put tokens before
    rows. A layer computes row by row if two rows that change places change places in its input too.

    Args:
        model: The base as it was loaded.
    """
    layers = {name: model.get_submodule(name) for name in names}
    try:
        inputs = made_up_rows(model)
        there = _layer_inputs(model, layers, inputs)
        back = _layer_inputs(model, layers, {name: value.flip(0) for name, value in inputs.items()})
    except Exception:  # noqa: BLE001  # whatever a foreign base does: nothing is known of its layers
        return frozenset()
    return frozenset(name for name in layers if not _change_places(there[name], back[name]))


def _layer_inputs(
    model: PreTrainedModel, layers: dict[str, nn.Module], inputs: dict[str, Tensor]
) -> dict[str, list[Tensor]]:
    """Return what each layer is given in a pass through the base's body, call by call."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def look_at(name: str) -> Any:
        return lambda _, args: seen[name].append(args[0])

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(look_at(name)))
        model.base_model(**inputs)
    return seen


def _change_places(there: list[Tensor], back: list[Tensor]) -> bool:
    if [x.shape for x in there] != [x.shape for x in back] or any(x[..., 0].numel() % 2 for x in there):
        return False
    rows = [(x.reshape(2, -1), y.reshape(2, -1).flip(0)) for x, y in zip(there, back, strict=True)]
    return all((y - x).norm() <= _TOLERANCE * x.norm() for x, y in rows)


def ended(ids: Tensor, config: PretrainedConfig) -> Tensor:
    """Return made-up rows, shape (n, T), as an encoder-decoder's head takes them; as they are for any other base.

    It reads what stands at the end token, and wants as many of these in each row: one, the last.
    """
    if not config.is_encoder_decoder:
        return ids
    end = config.eos_token_id
    rows = ids.masked_fill(ids == end, (end + 1) % config.vocab_size)
    rows[:, -1] = end
    return rows


def alike(actual: Tensor, expected: Tensor, tolerance: float = _TOLERANCE) -> bool:
    """Return whether two results, of a row each, differ by rounding only: by `tolerance` of their norm.

    Never where `expected` proves nothing: it is not finite, or its own rows differ by no more, as of a head of zeros.
    """
    if actual.shape != expected.shape:
        return False
    rounding = tolerance * expected.norm()
    return bool((actual - expected).norm() <= rounding < (expected - expected.flip(0)).norm())
