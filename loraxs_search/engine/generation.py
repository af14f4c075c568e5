"""Writing: sequences that a base continues token by token; they join and leave between tokens.

A decoder computes rows part by part, with the keys and values of what it has computed already. They are written in
place: one token more costs no copy of those before it. Prompts are computed in passes of like length, with little
padding; what those of one owner begin with is computed once. Each pass has its own cache, and caches are joined so that
every row ends in the same column.

Letters: n rows, h key heads, S tokens of each so far with padding, C tokens that there is space for, T further ones,
d the width of a head, D that of hidden states, V tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from loraxs_search.base_model.attention import PADDED
from loraxs_search.base_model.reading import Projection
from loraxs_search.engine.layers import AdaptedBase, Indices, Owners, RowMap, base_of
from loraxs_search.errors import BaseModelError
from loraxs_search.tasks.encoded import RUN_TOKENS, EncodedRows, Ragged, cheapest_runs
from loraxs_search.tasks.kinds import Generated, GenerateRequest, Sampling
from loraxs_search.tasks.prepared import end_ids

_CONTINUATION_TOLERANCE = 0.05  # bfloat16 makes .01, a cache that is not read .1 and more
_SPACE = 32  # tokens that are made space for at once: as long as shapes stay, so do a CPU's kernels for them


class _GrowingLayer(DynamicLayer):
    """One layer's keys and values.

    Args:
        turned: Whether keys lie in memory as (n, h, d, C), which is how a CPU multiplies one query with them fastest: a
            third of the time with (n, h, C, d) for 40 rows of 160 tokens in bfloat16.
    """

    def __init__(self, turned: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._turned = turned
        self.keys: Tensor = torch.empty(0)  # what is held, (n, h, S, d); the library reads it
        self.values: Tensor = torch.empty(0)
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
            self._fill([(self.keys, self.values, slice(None))], num_rows, start, stop)
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
            self._fill([(self.keys[beam_idx], self.values[beam_idx], slice(None))], num_rows, length)
            return
        moved = (beam_idx != torch.arange(num_rows, device=beam_idx.device)).nonzero()[:, 0]
        for stored in (self._keys.transpose(2, 3) if self._turned else self._keys, self._values):  # as in memory
            stored[moved] = stored[beam_idx[moved]]
        self._show(num_rows, length)

    @classmethod
    def joined(cls, layers: Sequence[_GrowingLayer], rows: Sequence[Tensor]) -> _GrowingLayer:
        """Return the rows of all layers as one; what is shorter has zeros before it."""
        other = copy.copy(layers[0])
        parts = [(layer.keys, layer.values, own) for layer, own in zip(layers, rows, strict=True)]
        other._fill(parts, sum(map(len, rows)), max(layer.keys.shape[2] for layer in layers))
        return other

    def forked(self, rows: Tensor, start: int = 0) -> _GrowingLayer:
        """Return a layer of these rows without their first tokens, which shares no memory with this one."""
        other, keys, values = copy.copy(self), self.keys[rows, :, start:], self.values[rows, :, start:]
        other._fill([(keys, values, slice(None))], len(rows), keys.shape[2])
        return other

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
        self._device = base.device
        # transformers 5.24 renamed the argument.
        named = "cache" in inspect.signature(type(self._body).forward).parameters
        self._cache_argument = "cache" if named else "past_key_values"
        self.project = Projection(base)
        self._cache = DynamicCache(config=base.config)
        self._mask_nS = torch.empty(0, 0, dtype=torch.int64)  # no rows before the first tokens
        # A window counts padding as tokens, and a layer with its own state reads it.
        self.allows_gaps = all(type(layer) is DynamicLayer for layer in self._cache.layers)
        # Layers with a sliding window keep every token here: their mask hides what the window has passed.
        turned = getattr(base.config.get_text_config(), "_attn_implementation", None) == PADDED
        self._cache.layers = [
            _GrowingLayer(turned) if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else layer
            for layer in self._cache.layers
        ]
        self.can_be_joined = all(isinstance(layer, _GrowingLayer) for layer in self._cache.layers)
        self._attends = any(isinstance(layer, DynamicLayer) for layer in self._cache.layers)

    def read(self, rows: Sequence[npt.NDArray[np.int32]], padding: str = "left") -> Tensor:
        """Compute further tokens of each row, padded on one side; return their last hidden states, (n, T, D)."""
        inputs = EncodedRows(Ragged.of(rows, np.int32)).padded(np.arange(len(rows)), 0, padding)  # any id will do
        ids, mask = (torch.from_numpy(inputs[name]).to(self._device) for name in ("input_ids", "attention_mask"))
        return self.compute(ids, mask)

    @torch.inference_mode()
    def compute(self, ids_nT: Tensor, mask_nT: Tensor) -> Tensor:
        """Compute further tokens of each row; return their last hidden states, (n, T, D).

        Args:
            ids_nT: Token ids, int64.
            mask_nT: 1 at tokens, 0 at padding, int64.
        """
        seen_nS = self._mask_nS if len(self._mask_nS) else mask_nT[:, :0]
        self._mask_nS = torch.cat([seen_nS, mask_nT], 1)
        outputs = self._body(
            input_ids=ids_nT,
            # One that is recurrent throughout reads the mask of these tokens only, and multiplies by it.
            attention_mask=self._mask_nS if self._attends else mask_nT,
            position_ids=(seen_nS.sum(1, keepdim=True) + mask_nT.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            **{self._cache_argument: self._cache},
        )
        states: Tensor = outputs[0]
        return states

    @torch.inference_mode()
    def select(self, rows: Indices) -> None:
        """Continue with these of the n rows, in this order; one may stand there twice."""
        chosen = torch.from_numpy(rows).to(self._mask_nS.device)
        self._cache.reorder_cache(cast("torch.LongTensor", chosen))
        self._mask_nS = self._mask_nS[chosen]

    @torch.inference_mode()
    def trim(self) -> None:
        """Forget the first columns where they are padding of every row, and more than the others.

        All rows end in the same column, so a batch that rows join and leave for ever would grow for ever.
        """
        width = self._mask_nS.shape[1]
        first = int(self._mask_nS.any(0).int().argmax())
        if self.can_be_joined and first > max(width - first, _SPACE):
            self._mask_nS = self._mask_nS[:, first:].contiguous()
            every = torch.arange(len(self._mask_nS), device=self._mask_nS.device)
            for number, layer in enumerate(self._cache.layers):  # one after the other: space may be short
                self._cache.layers[number] = cast("_GrowingLayer", layer).forked(every, first)

    def follow(self, tokens_n: npt.NDArray[np.int64]) -> Tensor:
        """Compute one more token of each row; return its last hidden states, (n, D)."""
        ids_n1 = torch.from_numpy(tokens_n[:, None]).to(self._mask_nS.device)
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
        first, widest = parts[0], max(part._mask_nS.shape[1] for part in parts)
        mask_nS = first._mask_nS.new_zeros(sum(map(len, rows)), widest)
        chosen = [torch.from_numpy(own).to(mask_nS.device) for own in rows]
        for own, part in zip(chosen, parts, strict=True):
            mask_nS[own, widest - part._mask_nS.shape[1] :] = part._mask_nS
        for number in range(len(first._cache.layers)):
            own_layers = [cast("_GrowingLayer", part._cache.layers[number]) for part in parts]
            layer = _GrowingLayer.joined(own_layers, chosen)
            for part in parts:
                part._cache.layers[number] = layer  # so that what was copied takes no memory
        first._mask_nS = mask_nS
        return first

    @torch.inference_mode()
    def forked(self, rows: Indices) -> Decoding:
        """Return these rows, in this order, to continue by themselves; any thread may, and others meanwhile."""
        other, chosen = copy.copy(self), torch.from_numpy(rows).to(self._mask_nS.device)
        other._cache, other._mask_nS = copy.copy(self._cache), self._mask_nS[chosen]
        other._cache.layers = []
        for layer in self._cache.layers:
            if isinstance(layer, _GrowingLayer):
                other._cache.layers.append(layer.forked(chosen))
            else:
                other._cache.layers.append(copy.deepcopy(layer))
                other._cache.layers[-1].reorder_cache(cast("torch.LongTensor", chosen))
        return other

    @staticmethod
    @torch.inference_mode()
    def check(model: PreTrainedModel) -> None:
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


def common_beginning(rows: Sequence[npt.NDArray[np.int32]]) -> int:
    """Return with how many equal tokens all rows begin."""
    first, size = rows[0], min(map(len, rows))
    for row in rows[1:]:
        differing = np.flatnonzero(row[:size] != first[:size])
        if len(differing):
            size = int(differing[0])
    return size


# What is computed again for each row must be so many times what is left when it is computed once: keys and values are
# copied for each row, and one more pass is taken.
WORTH = 1.25

_WINDOW = 12  # tokens that are decoded together; a window is decoded anew with each token
_INCOMPLETE = "\ufffd"  # what stands for the first bytes of a character


def _draw(logits_V: Tensor, sampling: Sampling, number: float) -> int:
    """Return the token at `number`, in [0, 1), of the distribution's cumulative sum.

    Tokens are summed by their ids, not by their probabilities: those of two that are nearly equally likely would
    change places with the rounding of other company, and all draws between with them.
    """
    p_V = torch.softmax(logits_V.double() / sampling.temperature, 0)
    if sampling.top_p < 1:
        sorted_V, order_V = p_V.sort(descending=True, stable=True)
        outside_V = sorted_V.cumsum(0) - sorted_V >= sampling.top_p  # what comes before is enough
        p_V[order_V[outside_V]] = 0
    sums_V = p_V.cumsum(0)
    token = int(torch.searchsorted(sums_V, number * sums_V[-1], right=True))
    return min(token, int(p_V.nonzero()[-1]))


class OpenSequence:
    """A row of a `GenerateRequest`.

    Args:
        number: Its place in the request.
        ends: Tokens that end it.
        on_text: Gets each piece of its text as soon as no stop string can begin in it.
    """

    def __init__(
        self,
        request: GenerateRequest,
        number: int,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.prompt: npt.NDArray[np.int32] = request.source.ids.row(int(request.rows[number]))
        self._request, self._tokenizer, self._ends, self._on_text = request, tokenizer, ends, on_text
        self._numbers: npt.NDArray[np.float64] | None = None  # what each step draws with, in [0, 1)
        if request.sampling is not None:
            digest = hashlib.sha256(f"{request.sampling.seed} {self.prompt.tolist()}".encode()).digest()
            # Raw draws, since numpy keeps those stable for ever but not what Generator makes of them.
            bits = np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "little")))
            self._numbers = (bits.random_raw(request.max_new_tokens) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        self._sent = 0  # characters
        self.begin()

    @classmethod
    def of(
        cls,
        request: GenerateRequest,
        tokenizer: PreTrainedTokenizerBase,
        model: nn.Module,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[OpenSequence]:
        """Return the rows of a request with nothing written.

        Args:
            on_text: Called with a row's number in the request and each piece of its text, as it is written.
        """
        ends = {*end_ids(tokenizer, base_of(model).generation_config), *request.ends}
        listeners = [partial(on_text, number) if on_text else None for number in range(len(request.rows))]
        return [cls(request, number, tokenizer, ends, listener) for number, listener in enumerate(listeners)]

    @staticmethod
    def results(rows: Sequence[OpenSequence]) -> Generated:
        """Return what was written in the rows of a request."""
        return Generated(
            texts=[row.text for row in rows],
            tokens=Ragged.of([row.tokens for row in rows], np.int32),
            ended=np.array([row.ended for row in rows]),
            margins=np.array([row.margin for row in rows], np.float32),
        )

    def begin(self) -> None:
        """Forget what was written, but not what a listener has heard of it."""
        self.tokens: list[int] = []
        self.margin = np.inf
        self.ended = self.is_over = False
        self._decoded = ""  # text of the tokens so far
        self._start, self._known = 0, ""  # the token that the window begins with, and its text that is decoded already
        self._stopped: int | None = None  # where in the text a stop string begins

    @property
    def span(self) -> tuple[int, int]:
        """Its tokens, prompt included, and how many more may follow."""
        return len(self.prompt) + len(self.tokens), self._request.max_new_tokens - len(self.tokens)

    @property
    def text(self) -> str:
        """What was written, up to the stop string."""
        return self._decoded[: self._stopped]

    def add(self, logits_V: Tensor, likeliest: int, margin: float) -> int:
        """Add the next token, the likeliest or one drawn by its own random number, and return it.

        Args:
            margin: By how much the two largest logits differ; where it is NaN, the row is over.
        """
        request, token, is_bad = self._request, likeliest, bool(np.isnan(margin))
        if request.sampling is not None and self._numbers is not None and not is_bad:
            token = _draw(logits_V, request.sampling, float(self._numbers[len(self.tokens)]))
        self.tokens.append(token)
        self.margin = np.nan if is_bad else min(self.margin, margin)
        self.ended = token in self._ends
        self.is_over = self.ended or len(self.tokens) == request.max_new_tokens or bool(np.isnan(self.margin))
        if request.stop or self._on_text or self.is_over:
            piece = self._decode_more(self.tokens[:-1] if self.ended else self.tokens)
            text = self._decoded  # a stop string may end within the new piece
            starts = [text.find(word, max(0, len(text) - len(piece) - len(word) + 1)) for word in request.stop]
            self._stopped = min((at for at in starts if at >= 0), default=None)
            if self._stopped is not None:
                self.ended = self.is_over = True
            if self._on_text:
                held = 0
                if not self.is_over:  # of the last characters, those that may be the beginning of a stop string
                    longest = min(len(text), max((len(word) for word in request.stop), default=1) - 1)
                    begins = (n for n in range(longest, 0, -1) if any(w.startswith(text[-n:]) for w in request.stop))
                    held = next(begins, 0)
                ready = self.text[self._sent : len(self.text) - held]
                self._sent += len(ready)
                if ready:
                    self._on_text(ready)
        return token

    def _decode_more(self, tokens: Sequence[int]) -> str:
        """Decode what is new of the row's tokens, and return what that adds to the text.

        The cost does not grow with the text: tokens are decoded with a few before them, which what they add depends on.
        The first bytes of a character wait for the others while more may follow.
        """

        def decoded(own: Sequence[int]) -> str:
            text = self._tokenizer.decode(list(own), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert isinstance(text, str)  # of one row
            return text

        window = decoded(tokens[self._start :])
        if window.endswith(_INCOMPLETE) and not self.is_over:
            return ""
        piece = window[len(self._known) :]
        self._decoded, self._known = self._decoded + piece, window
        if len(tokens) - self._start >= _WINDOW and not self.is_over:
            # Begin a new window, unless it would begin inside a character or with nothing to see.
            start = len(tokens) - _WINDOW // 4
            known = decoded(tokens[start:])
            if known.strip() and _INCOMPLETE not in known and self._known.endswith(known.lstrip()):
                self._start, self._known = start, known
        return piece


class Generation:
    """Sequences that are continued together. For one thread.

    What is written depends only on the sequence and its adapter, not on other rows.

    Args:
        base: A base without a head.
        worker: Which of the threads that compute passes side by side this is.
    """

    def __init__(self, base: AdaptedBase, worker: int = 0) -> None:
        self._base, self._worker = base, worker
        self._cohorts: list[_Cohort] = []

    def __len__(self) -> int:
        return sum(len(cohort.sequences) for cohort in self._cohorts)

    @property
    def can_be_joined(self) -> bool:
        """Whether further sequences are computed together with these, not in passes after theirs."""
        return all(cohort.decoding.can_be_joined for cohort in self._cohorts)

    @torch.inference_mode()
    def join(self, sequences: Sequence[OpenSequence], owners: Owners) -> list[OpenSequence]:
        """Compute further sequences as far as they are and give each its next token; return those that ended with it.

        Args:
            owners: Whose adapter each has, (n,); those of one owner stand side by side.
        """
        prompts = [np.array([*sequence.prompt, *sequence.tokens], np.int32) for sequence in sequences]
        decoding, states_nD = _read_prompts(self._base, prompts, owners, self._worker)
        cohort = _Cohort(decoding, list(sequences), np.asarray(owners))
        ended = cohort.take(decoding.project(states_nD))
        if cohort.sequences and self._cohorts and decoding.can_be_joined:
            first = self._cohorts.pop()
            owners = np.concatenate([first.owners, cohort.owners])
            order = np.argsort(owners, kind="stable")  # each owner's side by side
            places = np.split(np.argsort(order), [len(first.owners)])
            joined = Decoding.joined([first.decoding, decoding], places)
            joined.trim()
            every = [*first.sequences, *cohort.sequences]
            tokens_n = np.concatenate([first.tokens_n, cohort.tokens_n])[order]
            cohort = _Cohort(joined, [every[i] for i in order.tolist()], owners[order], tokens_n)
        if cohort.sequences:
            self._cohorts.append(cohort)
        return ended

    @torch.inference_mode()
    def step(self) -> list[OpenSequence]:
        """Give each sequence one more token; return those that have ended with it, which leave."""
        ended = []
        for cohort in self._cohorts:
            cohort.row_map = cohort.row_map or self._base.row_map(cohort.owners, self._worker)
            with self._base.context.computing(cohort.row_map):
                logits_nV = cohort.decoding.project(cohort.decoding.follow(cohort.tokens_n))
            ended += cohort.take(logits_nV)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.sequences]
        return ended

    def drop(self, sequences: Collection[OpenSequence]) -> None:
        """Remove sequences that nobody waits for any more."""
        for cohort in self._cohorts:
            cohort.leave(np.array([own not in sequences for own in cohort.sequences]))
        self._cohorts = [cohort for cohort in self._cohorts if cohort.sequences]


@dataclass
class _Cohort:
    """Sequences with one cache, each with the token that the next step begins with."""

    decoding: Decoding
    sequences: list[OpenSequence]
    owners: Owners
    tokens_n: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    row_map: RowMap | None = None

    def take(self, logits_nV: Tensor) -> list[OpenSequence]:
        """Give each sequence its next token; return those that have ended with it, which leave."""
        values_n2, tokens_n2 = logits_nV.topk(2, dim=-1)
        # By how much the likeliest beats the second; NaN where a logit is NaN or infinite: such logits come first.
        margins_n = torch.where(values_n2[:, 0].isfinite(), values_n2[:, 0] - values_n2[:, 1], torch.nan)
        columns = zip(self.sequences, logits_nV, tokens_n2[:, 0].tolist(), margins_n.tolist(), strict=True)
        self.tokens_n = np.array([own.add(*column) for own, *column in columns], np.int64)
        return self.leave(np.array([not own.is_over for own in self.sequences]))

    def leave(self, stays: npt.NDArray[np.bool_]) -> list[OpenSequence]:
        """Keep these sequences, (n,), and return the others. Those of an owner still stand side by side."""
        ended = [sequence for sequence, stay in zip(self.sequences, stays.tolist(), strict=True) if not stay]
        if not ended:
            return ended
        order, start = np.empty(int(stays.sum()), np.int64), 0
        for owner in dict.fromkeys(self.owners.tolist()):
            own = np.flatnonzero(stays & (self.owners == owner))
            places = np.arange(start, start + len(own))
            # The cache copies the rows that move: whoever stands where the owner's rows will stand stays there.
            kept = np.intersect1d(own, places)
            order[kept] = kept
            order[np.setdiff1d(places, kept)] = np.setdiff1d(own, kept)
            start += len(own)
        if len(order):
            self.decoding.select(order)
            self.decoding.trim()
        self.sequences = [self.sequences[i] for i in order.tolist()]
        self.owners, self.tokens_n, self.row_map = self.owners[order], self.tokens_n[order], None
        return ended


_CPU_TOKENS, _DEVICE_TOKENS = 4096, 65536  # of a pass over prompts; larger ones are no faster
_DEVICE_RUN_TOKENS = 4096  # what one more pass costs on an accelerator: a guess, as all that one row takes is calls


def _read_prompts(
    base: AdaptedBase, prompts: Sequence[npt.NDArray[np.int32]], owners: Owners, worker: int
) -> tuple[Decoding, Tensor]:
    """Compute the prompts of all rows; return the rows as they continue, and the last token's states, (n, D)."""
    begun = Decoding(base.model)
    _, first, group_of_n = np.unique(owners, return_index=True, return_inverse=True)
    # What the prompts of each owner begin with is computed once, where that is worth it. It leaves out the last token,
    # whose state is read.
    own = [[prompts[i] for i in np.flatnonzero(group_of_n == group).tolist()] for group in range(len(first))]
    sizes = [min(common_beginning(rows), min(map(len, rows)) - 1) for rows in own]
    saved = sum(size * (len(rows) - 1) for size, rows in zip(sizes, own, strict=True))
    whole = sum(map(len, prompts))
    is_begun = begun.allows_gaps and whole > WORTH * (whole - saved)
    order = np.argsort(first)  # owners as they stand
    begun_of_n = np.argsort(order)[group_of_n]
    if is_begun:
        with base.context.computing(base.row_map(owners[first[order]], worker)):
            begun.read([prompts[int(first[group])][: sizes[group]] for group in order.tolist()])
        prompts = [prompt[sizes[group] :] for prompt, group in zip(prompts, group_of_n.tolist(), strict=True)]
    parts, states = list[Decoding](), list[Tensor]()
    runs = [np.arange(len(prompts))]
    if begun.can_be_joined:
        lengths = np.array([len(prompt) for prompt in prompts])
        longest_first = np.argsort(-lengths, kind="stable")
        limit, cost = (_CPU_TOKENS, RUN_TOKENS) if base.device.type == "cpu" else (_DEVICE_TOKENS, _DEVICE_RUN_TOKENS)
        runs = [np.sort(longest_first[run]) for run in cheapest_runs(lengths[longest_first].tolist(), limit, cost)]
    for rows in runs:
        decoding = begun.forked(begun_of_n[rows]) if is_begun else Decoding(base.model)
        with base.context.computing(base.row_map(owners[rows], worker)):
            states.append(decoding.read([prompts[row] for row in rows.tolist()])[:, -1])
        parts.append(decoding)
    places = torch.from_numpy(np.argsort(np.concatenate(runs))).to(base.device)
    return Decoding.joined(parts, runs), torch.cat(states)[places]
