"""Attention on a CPU: torch computes the softmax of rows shorter than a vector number by number, so those are padded.

Measured for 32 rows of 23 tokens, 12 heads, bfloat16, AVX-512: softmax and its gradient 2.2 ms, padded and in float32
0.4 ms; the layer's matrix products, forward and backward, 25 ms.

Longer rows are computed a block of scores at a time: blocks stay in a core's cache. Heads that share keys are computed
as one, so keys and values are never copied for them; where the mask hides all keys behind a block's queries, as it does
in decoders, these are left out. Measured for 8 rows of 216 tokens, 9 heads and 3 of keys, bfloat16, AVX-512, one
thread: 13 ms forward and backward, whole and with copies 26, torch's flash kernel 36.

Letters: n rows, H heads of which G share keys, T queries, S keys, d a head's width; r rows and L queries of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from loraxs_search.base_model.reading import close_to, dummy_inputs, last_states, rounding

_BLOCK_BYTES = 1 << 20
_BLOCK_QUERIES, _MULTIPLE = 64, 32  # fewer queries make smaller products, which cost more than the keys they leave out


def _softmax_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of what softmax over the last dimension made `weights` of, in their dtype."""
    return cast("Tensor", torch.ops.aten._softmax_backward_data(gradient, weights, -1, weights.dtype))


@dataclass(frozen=True)
class _Block:
    """Rows, their queries, and the first keys, beyond which these queries see none."""

    rows: slice
    queries: slice
    keys: slice

    def of_keys(self, x: Tensor) -> Tensor:
        """Return its part of (n, H/G, S, d) as (r H/G, keys, d)."""
        return x[self.rows, :, self.keys].flatten(0, 1)

    def of_queries(self, x: Tensor) -> Tensor:
        """Return its part of (n, H/G, G, T, d) as (r H/G, G L, d)."""
        return x[self.rows, :, :, self.queries].flatten(0, 1).flatten(1, 2)


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        (n, heads, length, width), groups = query.shape, query.shape[1] // key.shape[1]
        q = (query * scale).reshape(n, -1, groups, length, width)
        k, v = key.contiguous(), value.contiguous()
        out, weights, blocks = query.new_empty(n, length, heads, width), [], list(_blocks(query, key, mask))
        for block in blocks:
            scores = torch.bmm(block.of_queries(q), block.of_keys(k).mT)  # (r H/G, G L, keys)
            if mask is not None:
                by_head = scores.view(-1, heads, block.queries.stop - block.queries.start, scores.shape[-1])
                rows = block.rows if len(mask) > 1 else slice(None)
                queries = block.queries if mask.shape[2] > 1 else slice(None)
                by_head += mask[rows, :, queries, block.keys]
            w = torch.softmax(scores, -1)
            weights.append(w)
            y = torch.bmm(w, block.of_keys(v)).view(-1, heads, block.queries.stop - block.queries.start, width)
            out[block.rows, block.queries] = y.transpose(1, 2)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.scale, ctx.blocks = scale, blocks
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        dy = grads[0].transpose(1, 2).reshape(q.shape)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, w in zip(ctx.blocks, weights, strict=True):
            own = block.of_queries(dy)
            by_row = len(k[block.rows]), k.shape[1], -1, k.shape[-1]
            dv[block.rows, :, block.keys] += torch.bmm(w.mT, own).view(by_row)
            dscores = _softmax_gradient(torch.bmm(own, block.of_keys(v).mT), w)
            dk[block.rows, :, block.keys] += torch.bmm(dscores.mT, block.of_queries(q)).view(by_row)
            into = dq[block.rows, :, :, block.queries]
            into.copy_(torch.bmm(dscores, block.of_keys(k)).view(into.shape))
        return dq.mul_(ctx.scale).flatten(1, 2), dk, dv, None, None


# Takes query (n, H, T, d), key and value (n, H/G, S, d), what is added to the scores (n or 1, H or 1, T or 1, S) or
# None, and the scale; returns (n, T, H, d), contiguous.
blocked_attention = cast("Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]", _Blocked.apply)


def _blocks(query: Tensor, key: Tensor, mask: Tensor | None) -> Iterator[_Block]:
    n, heads, length, _ = query.shape
    num_keys = key.shape[2]
    count = max(1, length // _BLOCK_QUERIES)
    step = -(-length // count // _MULTIPLE) * _MULTIPLE if count > 1 else length
    for first in range(0, length, step):
        stop = min(length, first + step)
        seen = num_keys - length + stop  # a cache has keys before the first query's own
        if mask is not None and 0 < seen < num_keys and mask.shape[2] >= stop:
            hidden = mask[:, :, first:stop, seen:].amax() <= torch.finfo(mask.dtype).min  # from all of these queries
            keys = slice(seen if hidden else num_keys)
        else:
            keys = slice(num_keys)
        row_bytes = heads * (stop - first) * keys.stop * query.element_size()
        num_rows = 1 << (max(1, _BLOCK_BYTES // row_bytes).bit_length() - 1)  # powers of two: few shapes for kernels
        for start in range(0, n, num_rows):
            yield _Block(slice(start, min(n, start + num_rows)), slice(first, stop), keys)


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


@torch.no_grad()
def use_padded_attention(model: PreTrainedModel) -> bool:
    """Have a model on a CPU compute attention this way if its hidden states stay what they are; return whether it does.

    Args:
        model: Loaded with "eager" attention, in evaluation mode; left so where its attention is of another kind. One on
            another device is left as it is.
    """
    if model.device.type != "cpu":
        return False
    AttentionInterface.register(PADDED, _padded_attention)
    AttentionMaskInterface.register(PADDED, eager_mask)
    try:
        inputs = dummy_inputs(model)
        real = inputs["attention_mask"].unsqueeze(-1)
        expected = last_states(model, inputs) * real
        model.set_attn_implementation(PADDED)
        kept = close_to(last_states(model, inputs) * real, expected, _ROUNDING * rounding(model))
    except Exception:  # noqa: BLE001  # whatever a foreign base does: it computes attention its own way
        kept = False
    if not kept:
        model.set_attn_implementation("eager")
    return kept


def _padded_attention(
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
        value: Like `key`; its d may be another.
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
    if key.shape[2] * key.element_size() >= _VECTOR_BYTES and value.shape[-1] == query.shape[-1]:
        mask = None if attention_mask is None else attention_mask[..., : key.shape[2]]
        return blocked_attention(query, key, value, mask, scale), None
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    length = key.shape[2]
    mask = key.new_zeros(1, 1, 1, length) if attention_mask is None else attention_mask[..., :length]
    # In float32, as wide as whole vectors; what is beyond the keys is never read.
    wide = pad(mask.to(torch.float32), (0, -length % _VECTOR), value=float("-inf"))
    return _padded_product(query, key, value, wide, scale), None


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
    """Shapes: b = n heads; q (b, T, d); k (b, P, d) and v (b, P, its own d), zero beyond S; weights (b, T, P)."""

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
        n = len(grads[0])
        dy = grads[0].transpose(1, 2).reshape(len(q), -1, v.shape[-1])
        dv = torch.bmm(weights.transpose(1, 2), dy)
        dweights = torch.bmm(dy, v.transpose(1, 2)).to(torch.float32)
        w = weights.to(torch.float32)
        dscores = _softmax_gradient(dweights, w)
        ds = dscores.mul_(ctx.scale).to(q.dtype)
        dq, dk = torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q)
        cut = slice(ctx.length)
        return _unfolded(dq, n), _unfolded(dk, n)[:, :, cut], _unfolded(dv, n)[:, :, cut], None, None


_padded_product = cast("Callable[..., Tensor]", _Padded.apply)


def _padded(x: Tensor, length: int) -> Tensor:
    """Return (n, heads, S, d) as (n heads, length, d)."""
    if x.shape[2] == length:
        return x.reshape(-1, *x.shape[2:])
    out = x.new_zeros(*x.shape[:2], length, x.shape[-1])
    out[:, :, : x.shape[2]] = x
    return out.flatten(0, 1)


def _unfolded(x: Tensor, n: int) -> Tensor:
    return x.view(n, -1, *x.shape[1:])
