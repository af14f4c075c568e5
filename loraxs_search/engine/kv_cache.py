"""A decoder that computes rows part by part, with the keys and values of what it has computed already.

They are written in place: one token more costs no copy of those before it. What rows begin with alike is computed once:
its keys and values serve all that continue it. Rows may name prompts that they share; what all rows begin with, such as
worked examples or an instruction, is seen in their tokens, so those who make rows need not say it.

Letters: n rows, h key heads, S tokens of each so far with padding, C tokens that there is space for, T further ones,
d the width of a head, D that of hidden states; G prompts, M reads.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from loraxs_search.base_model.attention import PADDED
from loraxs_search.base_model.reading import Projection
from loraxs_search.engine.passes import AdaptedBase, Indices, base_of
from loraxs_search.errors import BaseModelError
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import PassOutputs

_CONTINUATION_TOLERANCE = 0.05  # bfloat16 makes .01, a cache that is not read .1 and more
_SPACE = 32  # tokens that are made space for at once: as long as shapes stay, so do a CPU's kernels for them


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
        num_rows, stop = len(key_states), start + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if start == 0:
            self._fill([(key_states[:, :, :0], value_states[:, :, :0], slice(None))], num_rows, 0, stop)
        elif stop > self._values.shape[2]:
            self._fill([(*self._held(), slice(None))], num_rows, start, stop)
        self._values[:num_rows, :, start:stop] = value_states
        self._keys[:num_rows, :, start:stop] = key_states
        keys, values = self._show(num_rows, stop)
        if self._turned and key_states.shape[2] == 1:
            return self._keys[:num_rows], self._values[:num_rows]
        return (keys, values) if start else (key_states, value_states)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Continue with these rows, some of which may come twice; those that keep their place are not copied."""
        num_rows, length = len(beam_idx), self.get_seq_length()
        if num_rows > len(self._values):
            keys, values = self._held()
            self._fill([(keys[beam_idx], values[beam_idx], slice(None))], num_rows, length)
            return
        moved = (beam_idx != torch.arange(num_rows, device=beam_idx.device)).nonzero()[:, 0]
        for stored in (self._keys.transpose(2, 3) if self._turned else self._keys, self._values):  # as in memory
            stored[moved] = stored[beam_idx[moved]]
        self._show(num_rows, length)

    def drop_first(self, count: int) -> None:
        """Forget the first tokens of every row."""
        keys, values = self._held()
        length = keys.shape[2] - count
        self._fill([(keys[:, :, count:], values[:, :, count:], slice(None))], len(keys), length)

    @classmethod
    def joined(cls, layers: Sequence[GrowingLayer], rows: Sequence[Tensor]) -> GrowingLayer:
        """Return the rows of all layers as one; what is shorter has zeros before it."""
        other, held = copy.copy(layers[0]), [layer._held() for layer in layers]
        parts = [(*both, own) for both, own in zip(held, rows, strict=True)]
        other._fill(parts, sum(map(len, rows)), max(keys.shape[2] for keys, _ in held))
        return other

    def forked(self, rows: Tensor) -> GrowingLayer:
        """Return a layer of these rows that shares no memory with this one."""
        other, (keys, values) = copy.copy(self), self._held()
        other._fill([(keys[rows], values[rows], slice(None))], len(rows), keys.shape[2])
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

    def _fill(
        self, parts: Sequence[tuple[Tensor, Tensor, Tensor | slice]], num_rows: int, length: int, stop: int = 0
    ) -> None:
        """Take new space for `stop` tokens at least, and put keys and values to their rows; all end in one column."""
        (n_keys, n_values, _), *_ = parts
        space = -(-(max(length, stop) + 1) // _SPACE) * _SPACE
        (_, heads, _, d), width = n_keys.shape, n_values.shape[-1]
        new = n_keys.new_zeros((num_rows, heads, d, space) if self._turned else (num_rows, heads, space, d))
        self._keys = new.transpose(2, 3) if self._turned else new
        self._values = n_values.new_zeros(num_rows, heads, space, width)
        for keys, values, rows in parts:
            self._values[rows, :, length - keys.shape[2] : length] = values
            self._keys[rows, :, length - keys.shape[2] : length] = keys
        self._show(num_rows, length)


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
        turned = getattr(base.config.get_text_config(), "_attn_implementation", None) == PADDED
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
            **{_cache_argument(type(self._body).forward): self._cache},
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
        other._cache, other._mask_nS = copy.copy(self._cache), mask_nS[chosen]
        other._cache.layers = []
        for layer in self._cache.layers:
            if isinstance(layer, GrowingLayer):
                other._cache.layers.append(layer.forked(chosen))
            else:
                other._cache.layers.append(copy.deepcopy(layer))
                other._cache.layers[-1].reorder_cache(cast("torch.LongTensor", chosen))
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


@cache
def _cache_argument(forward: Callable[..., Any]) -> str:
    """Return what a body calls its cache: transformers 5.24 renamed the argument."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


# ---- what rows begin with alike --------------------------------------------------------------------------------------
# Rows are computed whole unless that takes more than so many times the tokens of shared prompts: these are copied for
# each row, and take one more pass.
_WORTH = 1.25


def is_worth_sharing(source: EncodedRows, rows: Indices) -> bool:
    """Return whether these rows are computed faster with shared prompts than whole; False where they share none."""
    if source.prompts is None or source.prompt_of is None:
        return False
    whole = source.lengths[rows].sum() + source.prompts.lengths[source.prompt_of[rows]].sum()
    return bool(whole > _WORTH * sum(tokens for tokens, _ in prompt_groups(source, rows)))


def prompt_groups(source: EncodedRows, rows: Indices) -> list[tuple[int, Indices]]:
    """Return for each prompt how many tokens it and its rows have, and the places in `rows` that continue it.

    Rows without prompts are each by themselves.
    """
    if source.prompts is None or source.prompt_of is None:
        return [(int(tokens), np.array([place])) for place, tokens in enumerate(source.lengths[rows])]
    prompt_of_n = source.prompt_of[rows]
    order = np.argsort(prompt_of_n, kind="stable")
    edges = np.flatnonzero(np.diff(prompt_of_n[order])) + 1
    groups = np.split(order, edges)
    lengths, before = source.lengths[rows], source.prompts.lengths
    return [(int(before[prompt_of_n[own[0]]] + lengths[own].sum()), own) for own in groups]


@torch.inference_mode()
def read_shared(
    base: AdaptedBase,
    parts: Sequence[EncodedRows],
    owners: Sequence[int],
    worker: int = 0,
    begun: Decoding | None = None,
) -> list[PassOutputs]:
    """Compute rows behind their prompts; return what is read of the rows of each part.

    Args:
        base: A base without a head.
        parts: Rows with positions, those of one prompt side by side; prompts are shared within a part.
        owners: Whose adapter the rows of each part have.
        begun: One row that all prompts continue from, or all rows if there is none; it is not changed. Prompts
            continue only from one that allows gaps.
    """
    device, owner_of_part = base.device, np.array(owners)
    part_of_n = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    # The prompts of all parts, of which part each is, and which of them each row continues; rows without prompts
    # continue one without tokens.
    ids, part_of_G, prompt_of_n = list[npt.NDArray[np.int32]](), list[int](), list[Indices]()
    for number, part in enumerate(parts):
        used, own = np.unique(np.zeros(len(part)) if part.prompt_of is None else part.prompt_of, return_inverse=True)
        prompt_of_n.append(own + len(ids))
        ids += [np.empty(0, np.int32) if part.prompts is None else part.prompts.row(int(i)) for i in used]
        part_of_G += [number] * len(used)
    has_prompts = any(len(prompt) for prompt in ids)
    first = np.array(part_of_G) if has_prompts else part_of_n
    decoding = Decoding(base.model) if begun is None else begun.forked(np.zeros(len(first), np.int64))
    if has_prompts:
        with base.computing_whole(base.row_map(owner_of_part[first]), worker):
            decoding.compute(*padded(ids, "left", device))
        decoding.select(np.concatenate(prompt_of_n))
    tails = [part.ids.row(i) for part in parts for i in range(len(part))]
    with base.computing_whole(base.row_map(owner_of_part[part_of_n]), worker):
        states_nTD = decoding.compute(*padded(tails, "right", device))
    outputs, start = [], 0
    for part in parts:
        reads = part.reads(np.arange(len(part)))
        assert reads is not None  # a head reads whole rows
        at = torch.from_numpy(reads).to(device)
        outputs.append(PassOutputs(states_nTD[start + at[:, 0], at[:, 1]], decoding.project))
        start += len(part)
    return outputs


def padded(rows: Sequence[npt.NDArray[np.int32]], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, (n, T) int64; any id will do as padding."""
    inputs = EncodedRows(Ragged.of(rows, np.int32)).padded(np.arange(len(rows)), 0, side)
    return torch.from_numpy(inputs["input_ids"]).to(device), torch.from_numpy(inputs["attention_mask"]).to(device)


def is_worth_beginning(whole: int, saved: int) -> bool:
    """Return whether leaving out `saved` of `whole` tokens is worth one more pass."""
    return whole > _WORTH * (whole - saved)


def common_beginning(rows: Sequence[npt.NDArray[np.int32]]) -> int:
    """Return with how many equal tokens all rows begin."""
    first, size = rows[0], min(map(len, rows))
    for row in rows[1:]:
        differing = np.flatnonzero(row[:size] != first[:size])
        if len(differing):
            size = int(differing[0])
    return size


@torch.inference_mode()
def begun_alike(base: AdaptedBase, owner: int, rows: EncodedRows) -> tuple[Decoding | None, EncodedRows]:
    """Compute what all rows begin with, where that is worth it; return it, and what follows of each row."""
    size = beginning_of(rows)
    decoding = Decoding(base.model) if size else None
    if decoding is None or (rows.prompts is not None and not decoding.allows_gaps):
        return None, rows
    first = (
        rows.ids.row(0) if rows.prompts is None or rows.prompt_of is None else rows.prompts.row(int(rows.prompt_of[0]))
    )
    ids = torch.from_numpy(first[:size].astype(np.int64))
    with base.computing_whole(base.row_map(np.array([owner]))):
        decoding.compute(ids[None].to(base.device), torch.ones(1, size, dtype=torch.int64, device=base.device))
    rest = rows.behind(size)
    return decoding, rest if is_worth_sharing(rest, np.arange(len(rest))) else rest.with_prompts()


def beginning_of(rows: EncodedRows) -> int:
    """Return with how many equal tokens all rows begin, if it is worth computing them apart; else 0.

    Nothing is read of them: at least the first token that is read follows in each row, or a prompt's rows.
    """
    if rows.positions is None or len(rows) < 2:  # a head reads whole rows
        return 0
    if rows.prompts is None or rows.prompt_of is None:
        size = int(rows.positions.values[rows.positions.starts].min())
        size = common_beginning([rows.ids.row(i)[:size] for i in range(len(rows))])
        whole, count = int(rows.lengths.sum()), len(rows)
    else:
        used = np.unique(rows.prompt_of).tolist()
        size = common_beginning([rows.prompts.row(i) for i in used])
        whole, count = sum(tokens for tokens, _ in prompt_groups(rows, np.arange(len(rows)))), len(used)
    return size if is_worth_beginning(whole, size * (count - 1)) else 0
