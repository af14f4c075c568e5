"""Whether a base computes the same in another way: two made-up rows tell."""

from __future__ import annotations

import torch
from torch import Tensor
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
