"""What goes into a base and what tasks read of it: the side of padding, the head's outputs, or last hidden states.

Dummy rows, and when two results count as the same, serve checks that another way computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PretrainedConfig, PreTrainedModel

from loraxs_search.base_model.head import head_names
from loraxs_search.errors import BaseModelError

Side = Literal["left", "right"]


def max_positions(config: PretrainedConfig) -> int | None:
    """Return the tokens of the longest row that a base takes; None if its configuration does not say."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def padding_side(config: PretrainedConfig) -> Side:
    """Return the side on which rows of a base are padded: right, but left for heads like XLNet's."""
    return "left" if getattr(config, "summary_type", None) == "last" else "right"


def joined(inputs: Sequence[Mapping[str, Tensor]], width: int, pad_id: int, side: Side) -> dict[str, Tensor]:
    """Return the inputs of several batches as those of one, its rows padded to `width` tokens.

    What some batches lack, such as numbers of segments, is zero in their rows, as models take it where it is missing.
    """
    fill = {"input_ids": pad_id}
    padded = [{name: _widened(v, width, fill.get(name, 0), side) for name, v in part.items()} for part in inputs]
    if len(padded) == 1:
        return padded[0]
    zeros = [torch.zeros_like(part["input_ids"]) for part in padded]
    return {
        name: torch.cat([part.get(name, zero) for part, zero in zip(padded, zeros, strict=True)])
        for name in dict.fromkeys(chain.from_iterable(padded))
    }


def _widened(rows: Tensor, width: int, fill: int, side: Side) -> Tensor:
    """Return rows (n, T) padded to (n, width)."""
    more = width - rows.shape[1]
    return pad(rows, (more, 0) if side == "left" else (0, more), value=fill) if more else rows


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
    ends = getattr(config, "eos_token_id", None)
    special = {config.pad_token_id, *(ends if isinstance(ends, list) else [ends])}
    plain = [token for token in range(min(100, config.get_text_config().vocab_size)) if token not in special]
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


def readable(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return all that a task may read of rows: the head's outputs; without a head, the hidden states of real tokens.

    Returns:
        Shape (n, outputs); with zeros at padding, (n, T, outputs) of a head that gives one a token, or (n, T, width).
    """
    read: Tensor = model(**inputs).logits if head_names(model) else last_states(model, inputs)
    return read if read.dim() == 2 else read * inputs["attention_mask"].unsqueeze(-1)


def last_states(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what leaves the body, shape (n, T, width)."""
    states: Tensor = model.base_model(**inputs)[0]
    return states


class Projection:
    """Turns hidden states (..., width) into the base's own logits (..., vocabulary), float32, in one step or two.

    Some bases scale logits by a number of their configuration, or cap them by one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._embedding = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._factor = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
        self._factor /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
        self._cap = getattr(config, "final_logit_softcapping", None)  # Gemma

    def __call__(self, states: Tensor) -> Tensor:
        return self.finish(self.embed(states))

    def embed(self, states: Tensor) -> Tensor:
        """Return the output embedding's own numbers, in the precision of the body."""
        embedded: Tensor = self._embedding(states)
        return embedded

    def finish(self, embedded: Tensor) -> Tensor:
        """Return the logits that they mean, float32."""
        logits = embedded.float()
        if self._factor != 1.0:
            logits = logits * self._factor
        return torch.tanh(logits / self._cap) * self._cap if self._cap else logits


@torch.no_grad()
def check_projection(model: PreTrainedModel) -> None:
    """Refuse a base without a head whose logits are not `Projection` of its last hidden states.

    Raises:
        BaseModelError: it scales, caps or shifts them in its own way.
    """
    inputs = dummy_inputs(model)
    real = inputs["attention_mask"].bool()
    expected, actual = model(**inputs).logits.float(), Projection(model)(last_states(model, inputs))
    if not close_to(actual[real], expected[real], rounding(model)):
        raise BaseModelError(
            "Logits of a base without a head must be its output embedding's, scaled by `logit_scale` or"
            " `logits_scaling` or capped by `final_logit_softcapping` at most, but"
            f" {type(model).__name__} makes them in another way.",
            hint="use another base for this task",
        )
