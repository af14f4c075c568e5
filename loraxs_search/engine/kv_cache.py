"""A decoder that computes rows part by part, with the keys and values of what it has computed already.

They are written in place: one token more costs no copy of those before it.

Letters: n rows, h key heads, S tokens of each so far with padding, C tokens that there is space for, T further ones,
d the width of a head, D that of hidden states.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from loraxs_search.base_model.attention import uses_padded_attention
from loraxs_search.base_model.reading import Projection
from loraxs_search.engine.passes import base_of
from loraxs_search.errors import BaseModelError

Indices = npt.NDArray[np.int64]
_CONTINUATION_TOLERANCE = 0.05  # bfloat16 makes .01, a cache that is not read .1 and more
_SPACE = 32  # tokens that are made space for at once: as long as shapes stay, so do a CPU's kernels for them


def forked_cache(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """Return a cache of these rows that shares no memory with the first one.

    Args:
        rows: int64, on their device; one may stand there twice.
    """
    other = copy.copy(cache)
    other.layers = []
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            other.layers.append(layer.forked(rows))
        else:
            other.layers.append(copy.deepcopy(layer))
            other.layers[-1].reorder_cache(cast("torch.LongTensor", rows))
    return other


class GrowingLayer(DynamicLayer):
    """One layer's keys and values.

    Args:
        turned: Whether keys lie in memory as (n, h, d, C), which is how a CPU multiplies one query with them fastest: a
            third of the time with (n, h, C, d) for 40 rows of 160 tokens in bfloat16.
    """

    def __init__(self, turned: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._turned = turned
        self._keys = self._values = torch.empty(0)  # (n, h, C, d); turned keys are a view of that shape

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep further keys and values (n, h, T, d); return all, (n, h, S, d).

        Behind them are zeros up to C where keys are turned and T is 1: a slice would be copied before it is multiplied.
        """
        start = self.get_seq_length() if self.is_initialized else 0
        stop = start + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if start == 0 or stop > self._values.shape[2]:
            self._make_space(key_states, value_states, start, stop)
        num_rows = len(key_states)
        self._values[:num_rows, :, start:stop] = value_states
        self._keys[:num_rows, :, start:stop] = key_states
        keys, values = self._show(num_rows, stop)
        if self._turned and key_states.shape[2] == 1:
            return self._keys[:num_rows], self._values[:num_rows]
        return (keys, values) if start else (key_states, value_states)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Continue with these rows; those that keep their place are not copied."""
        num_rows, length = len(indices), self.get_seq_length()
        if num_rows <= len(self._values):
            moved = (indices != torch.arange(num_rows, device=indices.device)).nonzero()[:, 0]
            for stored in self._in_memory():
                stored[moved] = stored[indices[moved]]
        else:
            self._keys, self._values = self._copied(indices)
        self._show(num_rows, length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Do what `batch_select_indices` does: layers with recurrent states know this name only."""
        self.batch_select_indices(beam_idx)

    def drop_first(self, count: int) -> None:
        """Forget the first tokens of every row."""
        (keys, values), length = self._held(), self.get_seq_length() - count
        self._make_space(keys, values, 0, length)
        self._values[:, :, :length] = values[:, :, count:]
        self._keys[:, :, :length] = keys[:, :, count:]
        self._show(len(keys), length)

    def forked(self, rows: Tensor) -> GrowingLayer:
        """Return a layer of these rows that shares no memory with this one."""
        other = copy.copy(self)
        other._keys, other._values = self._copied(rows)
        other._show(len(rows), self.get_seq_length())
        return other

    @classmethod
    def joined(cls, layers: Sequence[GrowingLayer], rows: Sequence[Tensor]) -> GrowingLayer:
        """Return the rows of all layers as one; what is shorter has zeros before it."""
        num_rows, length = sum(map(len, rows)), max(layer.get_seq_length() for layer in layers)
        other, held = copy.copy(layers[0]), [layer._held() for layer in layers]
        other._make_space(held[0][0][:1].expand(num_rows, -1, -1, -1), held[0][1], 0, length)
        for (keys, values), own in zip(held, rows, strict=True):
            place = slice(length - keys.shape[2], length)
            other._values[own, :, place] = values
            other._keys[own, :, place] = keys
        other._show(num_rows, length)
        return other

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _held(self) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer that has some."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _show(self, num_rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Set what the rest of the library sees, and return it."""
        self.keys, self.values = self._keys[:num_rows, :, :length], self._values[:num_rows, :, :length]
        return self.keys, self.values

    def _in_memory(self) -> tuple[Tensor, Tensor]:
        """Return keys and values as they lie in memory."""
        return self._keys.transpose(2, 3) if self._turned else self._keys, self._values

    def _copied(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = (stored[rows] for stored in self._in_memory())
        return keys.transpose(2, 3) if self._turned else keys, values

    def _make_space(self, key_states: Tensor, value_states: Tensor, start: int, stop: int) -> None:
        n, heads, _, d = key_states.shape
        space = -(-(stop + 1) // _SPACE) * _SPACE
        keys = key_states.new_zeros((n, heads, d, space) if self._turned else (n, heads, space, d))
        keys = keys.transpose(2, 3) if self._turned else keys
        values = value_states.new_zeros(n, heads, space, value_states.shape[-1])
        if start:
            keys[:, :, :start], values[:, :, :start] = self._keys[:n, :, :start], self._values[:n, :, :start]
        self._keys, self._values = keys, values


class Decoding:
    """Rows on their way through a decoder. For one thread; the model's adapters must know the rows at each call.

    Padding may stand on the left of the first tokens, and on the right of the last: what a row gives depends on its
    real tokens alone, which stand side by side. It may stand between them too where `allows_gaps` says so.

    Args:
        model: A base without a head, with or without adapters on it.
    """

    def __init__(self, model: nn.Module) -> None:
        base = base_of(model)
        self._body: nn.Module = base.base_model
        self.project = Projection(base)
        self._cache = DynamicCache(config=base.config)
        self._mask_nS: Tensor | None = None
        # A window counts padding as tokens, and a layer with its own state reads it.
        self.allows_gaps = all(type(layer) is DynamicLayer for layer in self._cache.layers)
        # Layers with a sliding window keep every token here: their mask hides what the window has passed.
        turned = uses_padded_attention(base)
        self._cache.layers = [
            GrowingLayer(turned) if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else layer
            for layer in self._cache.layers
        ]
        self.can_be_joined = all(isinstance(layer, GrowingLayer) for layer in self._cache.layers)
        self._attends = any(isinstance(layer, DynamicLayer) for layer in self._cache.layers)

    @torch.inference_mode()
    def compute(self, ids_nT: Tensor, mask_nT: Tensor) -> Tensor:
        """Compute further tokens of each row; return their last hidden states, (n, T, D).

        Args:
            ids_nT: Token ids, int64.
            mask_nT: 1 at tokens, 0 at padding, int64.
        """
        seen = self._mask_nS
        first_n1 = 0 if seen is None else seen.sum(1, keepdim=True)
        self._mask_nS = mask_nT if seen is None else torch.cat([seen, mask_nT], 1)
        outputs = self._body(
            input_ids=ids_nT,
            # One that is recurrent throughout reads the mask of these tokens only, and multiplies by it.
            attention_mask=self._mask_nS if self._attends else mask_nT,
            position_ids=(first_n1 + mask_nT.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            **{_cache_argument(self._body): self._cache},
        )
        states: Tensor = outputs[0]
        return states

    @torch.inference_mode()
    def select(self, rows: Indices) -> None:
        """Continue with these of the n rows, in this order; one may stand there twice."""
        mask_nS = self._mask()
        chosen = torch.from_numpy(rows).to(mask_nS.device)
        self._cache.reorder_cache(cast("torch.LongTensor", chosen))
        self._mask_nS = mask_nS[chosen]

    @torch.inference_mode()
    def trim(self) -> None:
        """Forget the first columns where they are padding of every row, and more than the others.

        All rows end in the same column, so a batch that rows join and leave for ever would grow for ever.
        """
        mask_nS = self._mask()
        width = mask_nS.shape[1]
        first = int(mask_nS.any(0).int().argmax())
        if self.can_be_joined and first > max(width - first, _SPACE):
            self._mask_nS = mask_nS[:, first:].contiguous()
            for layer in self._cache.layers:
                cast("GrowingLayer", layer).drop_first(first)

    def follow(self, tokens_n: npt.NDArray[np.int64]) -> Tensor:
        """Compute one more token of each row; return its last hidden states, (n, D)."""
        ids_n1 = torch.from_numpy(tokens_n[:, None]).to(self._mask().device)
        return self.compute(ids_n1, torch.ones_like(ids_n1))[:, -1]

    @classmethod
    @torch.inference_mode()
    def joined(cls, parts: Sequence[Decoding], rows: Sequence[Indices]) -> Decoding:
        """Return the rows of all parts as one; all end in the same column. The parts are used up.

        Args:
            rows: Which row each row of a part becomes, (n,), for each part.
        """
        if len(parts) == 1 and (np.diff(rows[0]) > 0).all():
            return parts[0]
        first, masks = parts[0], [part._mask() for part in parts]
        widest = max(mask.shape[1] for mask in masks)
        mask_nS = masks[0].new_zeros(sum(map(len, rows)), widest)
        chosen = [torch.from_numpy(own).to(mask_nS.device) for own in rows]
        for own, mask in zip(chosen, masks, strict=True):
            mask_nS[own, widest - mask.shape[1] :] = mask
        for number in range(len(first._cache.layers)):
            own_layers = [cast("GrowingLayer", part._cache.layers[number]) for part in parts]
            layer = GrowingLayer.joined(own_layers, chosen)
            for part in parts:
                part._cache.layers[number] = layer  # so that what was copied takes no memory
        first._mask_nS = mask_nS
        return first

    @torch.inference_mode()
    def forked(self, rows: Indices) -> Decoding:
        """Return these rows, in this order, to continue by themselves; any thread may, and others meanwhile."""
        other, mask_nS = copy.copy(self), self._mask()
        chosen = torch.from_numpy(rows).to(mask_nS.device)
        other._cache, other._mask_nS = forked_cache(self._cache, chosen), mask_nS[chosen]
        return other

    def _mask(self) -> Tensor:
        assert self._mask_nS is not None  # something was computed
        return self._mask_nS


@torch.inference_mode()
def check_continuation(model: PreTrainedModel) -> None:
    """Check that a decoder reads further tokens behind its cache as it reads whole rows; a moment's work.

    Raises:
        BaseModelError: it does not, so that what it writes would be wrong from the second token on.
    """
    embeddings = cast("Tensor", model.get_input_embeddings().weight)
    vocabulary, device = len(embeddings), embeddings.device
    ids_nT = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary, (2, 9))).to(device)
    mask_nT = torch.ones_like(ids_nT)
    mask_nT[1, :4] = 0
    decoding = Decoding(model)
    decoding.compute(ids_nT[:, :6], mask_nT[:, :6])
    found = torch.stack([decoding.follow(column.cpu().numpy()) for column in ids_nT[:, 6:].T], 1)  # (n, 3, D)
    rows = [ids_nT[:1], ids_nT[1:, 4:]]
    expected = torch.cat([model.base_model(input_ids=row, use_cache=False)[0][:, -3:] for row in rows])
    errors = (found - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)
    if not errors.median() < _CONTINUATION_TOLERANCE:  # the median: rounding may send one token to another expert
        raise BaseModelError(
            f"{type(model).__name__} does not read tokens one by one as it reads them at once (relative difference "
            f"{errors.median():.2g}), so what it writes would be wrong.",
            hint="choose another base; if transformers gives this one another kind of cache, report it here",
        )


_ARGUMENTS: dict[type[nn.Module], str] = {}


def _cache_argument(body: nn.Module) -> str:
    """Return what a body calls its cache: transformers 5.24 renamed the argument."""
    if type(body) not in _ARGUMENTS:
        names: Any = inspect.signature(body.forward).parameters
        _ARGUMENTS[type(body)] = "cache" if "cache" in names else "past_key_values"
    return _ARGUMENTS[type(body)]
