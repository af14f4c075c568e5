"""Dummy rows, and when two results of a base count as the same: for checks that another way computes the same."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from loraxs_search.base_model.padding import padding_side

_LENGTHS = (7, 5, 4)  # no multiple of a window that a base such as Longformer pads to by itself
# Relative. In half precision: larger than rounding, smaller than the effect of another input.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 1e-2


def dummy_inputs(model: PreTrainedModel, num_rows: int = 2, width: int = _LENGTHS[0]) -> dict[str, Tensor]:
    """Return inputs of rows of 7 tokens, 5 and 4, and padding: `input_ids` and `attention_mask`, (num_rows, width).

    No token is the padding; each row of an encoder-decoder ends with its end token, which its head reads.

    Raises:
        ValueError: short rows would change the model permanently, as with BigBird; or there is no padding token.
    """
    config, device = model.config, model.device
    if getattr(config, "attention_type", None) == "block_sparse":
        raise ValueError("`attention_type` must not be block_sparse: the first short row changes it.")
    if getattr(config, "pad_token_id", None) is None:
        raise ValueError("`pad_token_id` must be a token, but is None.")
    plain = _plain_tokens(config)
    rows = []
    for row, length in enumerate(_LENGTHS[:num_rows]):
        tokens = [plain[(_LENGTHS[0] * row + i) % len(plain)] for i in range(length)]
        if config.is_encoder_decoder:
            tokens[-1] = config.eos_token_id
        padding = [config.pad_token_id] * (width - length)
        rows.append([*padding, *tokens] if padding_side(config) == "left" else [*tokens, *padding])
    ids = torch.tensor(rows, device=device)
    return {"input_ids": ids, "attention_mask": (ids != config.pad_token_id).long()}


def timing_inputs(model: PreTrainedModel, num_tokens: int, length: int = 32) -> dict[str, Tensor]:
    """Return inputs of about so many tokens in rows of `length`, for timing: `input_ids` and `attention_mask`."""
    ids = torch.arange(max(1, num_tokens // length) * length, device=model.device).view(-1, length)
    ids = end_with_eos(ids % model.config.vocab_size, model.config)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _plain_tokens(config: PretrainedConfig) -> list[int]:
    """Return tokens that neither pad nor end a row."""
    ends = getattr(config, "eos_token_id", None)
    special = {config.pad_token_id, *(ends if isinstance(ends, list) else [ends])}
    return [token for token in range(min(100, config.get_text_config().vocab_size)) if token not in special]


def end_with_eos(ids: Tensor, config: PretrainedConfig) -> Tensor:
    """Return dummy rows, shape (n, T), as an encoder-decoder's head takes them; unchanged for any other base.

    Such a head reads the state at the end token, so each row must have exactly one: here the last token.
    """
    if not config.is_encoder_decoder:
        return ids
    end = config.eos_token_id
    rows = ids.masked_fill(ids == end, (end + 1) % config.vocab_size)
    rows[:, -1] = end
    return rows


def rounding(model: PreTrainedModel) -> float:
    """Return the relative difference up to which two results count as the same, in the precision of the base."""
    return _TOLERANCES.get(model.dtype, _HALF_TOLERANCE)


def close_to(actual: Tensor, expected: Tensor, tolerance: float = _HALF_TOLERANCE) -> bool:
    """Return whether two results, of a row each, differ by rounding only: by `tolerance` of their norm.

    False where `expected` proves nothing: it is not finite, or its own rows differ by no more (a head of zeros).
    """
    if actual.shape != expected.shape:
        return False
    limit = tolerance * expected.norm()
    return bool((actual - expected).norm() <= limit < (expected - expected.flip(0)).norm())
