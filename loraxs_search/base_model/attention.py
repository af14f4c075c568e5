"""Attention on a CPU: torch computes the softmax of rows shorter than a vector number by number, so those are padded.

Longer ones are computed block by block (`blocked_attention`).

Measured for 32 rows of 23 tokens, 12 heads, bfloat16, AVX-512: softmax and its gradient 2.2 ms, padded and in float32
0.4 ms; the layer's matrix products, forward and backward, 25 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from loraxs_search.base_model.blocked_attention import blocked_attention, softmax_gradient
from loraxs_search.base_model.probing import close_to, dummy_inputs, rounding

PADDED = "loraxs_padded"  # what transformers knows it by
_VECTOR_BYTES = 64  # the widest vector of a CPU
_VECTOR = _VECTOR_BYTES // 4  # float32 numbers in one

# Attention that rounds elsewhere makes 1.3 % of a bfloat16 base's hidden states, and 3 % of a new head's small logits:
# in half precision as many times what other changes make of them.
_ROUNDING = 5

# What models hand to an attention function beside queries, keys, values, mask, scale and dropout, and plain attention
# has no use for. Whatever else a model asks for (a soft cap, sinks, a position bias) is not here to be had.
_NO_MATTER = {
    "cache_position",
    "is_causal",
    "position_embeddings",
    "position_ids",
    "sliding_window",
    "token_type_ids",  # decoders hand on whatever the tokenizer makes
    "use_cache",
}


def use_padded_attention(model: PreTrainedModel) -> bool:
    """Have a model on a CPU compute attention this way if its hidden states stay what they are; return whether it does.

    Args:
        model: Loaded with "eager" attention, in evaluation mode; left so where its attention is of another kind. One on
            another device is left as it is.
    """
    if model.device.type != "cpu":
        return False
    AttentionInterface.register(PADDED, padded_attention)
    AttentionMaskInterface.register(PADDED, eager_mask)
    if not (kept := _stays_the_same(model)):
        model.set_attn_implementation("eager")
    return kept


def uses_padded_attention(model: PreTrainedModel) -> bool:
    """Whether a model computes attention this way."""
    return bool(getattr(model.config.get_text_config(), "_attn_implementation", None) == PADDED)


@torch.no_grad()
def _stays_the_same(model: PreTrainedModel) -> bool:
    try:
        inputs = dummy_inputs(model)
        expected = _hidden_states(model, inputs)
        model.set_attn_implementation(PADDED)
        return close_to(_hidden_states(model, inputs), expected, _ROUNDING * rounding(model))
    except Exception:  # noqa: BLE001  # whatever a foreign base does: it computes attention its own way
        return False


def _hidden_states(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Return what the body makes of real tokens, shape (n, T, width), and zero at padding."""
    states: Tensor = model.base_model(**inputs)[0]
    return states * inputs["attention_mask"].unsqueeze(-1)


def padded_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute softmax(q k^T scaling + mask) v; where rows are padded, softmax is in float32 whatever the precision.

    Args:
        query: Shape (n, heads, T, d).
        key: Shape (n, key heads, S, d); heads are a multiple of key heads.
        value: Like `key`.
        attention_mask: What is added to the scores, shape (n or 1, 1, T or 1, S).
    Returns:
        Shape (n, T, heads, d), contiguous; no attention weights.
    Raises:
        NotImplementedError: the model asks for dropout, or for attention of another kind.
    """
    asked = (name for name, value in others.items() if value is not None and value is not False)
    unknown = sorted(set(asked) - _NO_MATTER)
    if dropout or unknown:
        raise NotImplementedError(f"`{PADDED}` is plain attention, but got dropout={dropout}, {', '.join(unknown)}.")
    if query.shape[2] == 1 and not torch.is_grad_enabled():
        return _of_one_token(query, key, value, attention_mask, scaling or query.shape[-1] ** -0.5), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if key.shape[2] * key.element_size() >= _VECTOR_BYTES:
        mask = None if attention_mask is None else attention_mask[..., : key.shape[2]]
        return blocked_attention(query, key, value, mask, scale), None
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return _padded_product(query, key, value, _wide(attention_mask, key), scale), None


def _of_one_token(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Compute what one more token sees: keys and values are not repeated for the heads that share them.

    What the mask, (n or 1, 1, 1, S), does not reach is not seen: there may be space for more keys than there are.
    """
    n, heads, _, width = query.shape
    q = query.reshape(n * key.shape[1], -1, width)  # (n key heads, heads that share them, d)
    scores = torch.bmm(q, key.flatten(0, 1).transpose(1, 2)).float().mul_(scale).view(n, heads, 1, -1)
    if mask is not None:
        seen = min(mask.shape[-1], key.shape[2])
        scores[..., :seen] += mask[..., :seen]
        scores[..., seen:] = float("-inf")
    weights = torch.softmax(scores, -1).to(query.dtype).view(*q.shape[:2], -1)
    return torch.bmm(weights, value.flatten(0, 1)).view(n, 1, heads, -1)


class _Padded(torch.autograd.Function):
    """Shapes: b = n heads; q (b, T, d); k, v (b, P, d), zero beyond S; weights (b, T, P)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        n, heads, length, width = query.shape
        q = query.reshape(n * heads, length, width)
        k, v = _padded(key, mask.shape[-1]), _padded(value, mask.shape[-1])
        scores = torch.bmm(q, k.transpose(1, 2)).view(n, heads, length, -1).to(torch.float32)
        weights = torch.softmax(scores.mul_(scale).add_(mask), -1).to(q.dtype).flatten(0, 1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale, ctx.length = scale, key.shape[2]
        return _unfolded(torch.bmm(weights, v), n).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        n, width = len(grads[0]), q.shape[-1]
        dy = grads[0].transpose(1, 2).reshape(len(q), -1, width)
        dv = torch.bmm(weights.transpose(1, 2), dy)
        dweights = torch.bmm(dy, v.transpose(1, 2)).to(torch.float32)
        w = weights.to(torch.float32)
        dscores = softmax_gradient(dweights, w)
        ds = dscores.mul_(ctx.scale).to(q.dtype)
        dq, dk = torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q)
        cut = slice(ctx.length)
        return _unfolded(dq, n), _unfolded(dk, n)[:, :, cut], _unfolded(dv, n)[:, :, cut], None, None


_padded_product = cast("Callable[..., Tensor]", _Padded.apply)


def _wide(mask: Tensor | None, key: Tensor) -> Tensor:
    """Return the mask in float32, as wide as whole vectors; what is beyond the keys is never looked at."""
    length = key.shape[2]
    more = -length % _VECTOR
    if mask is None:
        mask = key.new_zeros(1, 1, 1, length)
    return pad(mask[..., :length].to(torch.float32), (0, more), value=float("-inf"))


def _padded(x: Tensor, length: int) -> Tensor:
    """Return (n, heads, S, d) as (n heads, length, d)."""
    if x.shape[2] == length:
        return x.reshape(-1, *x.shape[2:])
    out = x.new_zeros(*x.shape[:2], length, x.shape[-1])
    out[:, :, : x.shape[2]] = x
    return out.flatten(0, 1)


def _unfolded(x: Tensor, n: int) -> Tensor:
    return x.view(n, -1, *x.shape[1:])
