"""Writing: sequences that a base continues token by token; they join and leave between tokens.

Prompts are computed in passes of like length, with little padding; what those of one owner begin with is computed once.
Each pass has its own cache, and caches are joined so that every row ends in the same column.

Letters: n rows, T tokens of each with padding, V tokens of the vocabulary, D the width of hidden states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from loraxs_search.engine.kv_cache import Decoding, common_beginning, is_worth_beginning, padded
from loraxs_search.engine.layers import RowMap
from loraxs_search.engine.passes import AdaptedBase, Indices, Owners, base_of, plan_prompts
from loraxs_search.tasks.encoded import Ragged
from loraxs_search.tasks.kinds import Generated, GenerateRequest, Sampling, TokenLogprobs
from loraxs_search.tasks.prepared import end_ids

_WINDOW = 12  # tokens that are decoded together; a window is decoded anew with each token
_INCOMPLETE = "\ufffd"  # what stands for the first bytes of a character


class _GrowingText:
    """Decodes tokens as they come, at a cost that does not grow with the text.

    Tokens are decoded with some before them: what a token adds depends on those.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._start, self._known = 0, ""  # where the window begins, and the text of it that is in `text` already
        self.text = ""

    def add(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """Decode what is new of a row's tokens, and return what that adds to the text.

        Args:
            tokens: All tokens of the row.
            last: Whether none will follow: then the first bytes of a character are decoded too.
        """
        window = self._decode(tokens[self._start :])
        if window.endswith(_INCOMPLETE) and not last:
            return ""
        piece = window[len(self._known) :]
        self.text, self._known = self.text + piece, window
        if len(tokens) - self._start >= _WINDOW and not last:
            # Begin a new window, unless it would begin inside a character or with nothing to see.
            start = len(tokens) - _WINDOW // 4
            known = self._decode(tokens[start:])
            if known.strip() and _INCOMPLETE not in known and self._known.endswith(known.lstrip()):
                self._start, self._known = start, known
        return piece

    def _decode(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # of one row
        return text


def draw(logits_V: Tensor, sampling: Sampling, number: float) -> int:
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

    def begin(self) -> None:
        """Forget what was written, but not what a listener has heard of it."""
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.margin = np.inf
        self.ended = self.is_over = False
        self._growing = _GrowingText(self._tokenizer)
        self._stopped: int | None = None  # where in the text a stop string begins

    @property
    def max_length(self) -> int:
        """The most tokens that it may have, its prompt's included."""
        return len(self.prompt) + self._request.max_new_tokens

    @property
    def span(self) -> tuple[int, int]:
        """Its tokens, prompt included, and how many more may follow."""
        return len(self.prompt) + len(self.tokens), self._request.max_new_tokens - len(self.tokens)

    @property
    def text(self) -> str:
        """What was written, up to the stop string."""
        return self._growing.text[: self._stopped]

    def add(self, logits_V: Tensor, likeliest: int, margin: float) -> int:
        """Add the next token, the likeliest or one drawn by its own random number, and return it.

        Args:
            margin: By how much the two largest logits differ; where it is NaN, the row is over.
        """
        request, token, is_bad = self._request, likeliest, bool(np.isnan(margin))
        if request.sampling is not None and self._numbers is not None and not is_bad:
            token = draw(logits_V, request.sampling, float(self._numbers[len(self.tokens)]))
        if request.logprobs is not None:
            logprobs_V = torch.log_softmax(logits_V.float(), 0)
            values, ids = logprobs_V.topk(request.logprobs)
            first = dict(zip(ids.tolist(), values.tolist(), strict=True))
            self.logprobs.append(TokenLogprobs(token, float(logprobs_V[token]), first))
        self.tokens.append(token)
        self.margin = np.nan if is_bad else min(self.margin, margin)
        self.ended = token in self._ends
        self.is_over = self.ended or len(self.tokens) == request.max_new_tokens or bool(np.isnan(self.margin))
        if request.stop or self._on_text or self.is_over:
            piece = self._growing.add(self.tokens[:-1] if self.ended else self.tokens, last=self.is_over)
            text = self._growing.text  # a stop string may end within the new piece
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


def generated(rows: Sequence[OpenSequence]) -> Generated:
    """Return the results of a request's rows, in their order."""
    return Generated(
        texts=[row.text for row in rows],
        tokens=Ragged.of([row.tokens for row in rows], np.int32),
        ended=np.array([row.ended for row in rows]),
        margins=np.array([row.margin for row in rows], np.float32),
        logprobs=[row.logprobs for row in rows],
    )


def open_sequences(
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
    return [OpenSequence(request, number, tokenizer, ends, listener) for number, listener in enumerate(listeners)]


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
            cohort.row_map = self._base.row_map(cohort.owners)
            self._cohorts.append(cohort)
        return ended

    @torch.inference_mode()
    def step(self) -> list[OpenSequence]:
        """Give each sequence one more token; return those that have ended with it, which leave."""
        ended = []
        for cohort in self._cohorts:
            with self._base.computing_whole(cohort.row_map, self._worker):
                logits_nV = cohort.decoding.project(cohort.decoding.follow(cohort.tokens_n))
            ended += self._placed(cohort, cohort.take(logits_nV))
        self._cohorts = [cohort for cohort in self._cohorts if cohort.sequences]
        return ended

    def drop(self, sequences: Collection[OpenSequence]) -> None:
        """Remove sequences that nobody waits for any more."""
        for cohort in self._cohorts:
            self._placed(cohort, cohort.leave(np.array([own not in sequences for own in cohort.sequences])))
        self._cohorts = [cohort for cohort in self._cohorts if cohort.sequences]

    def _placed(self, cohort: _Cohort, left: list[OpenSequence]) -> list[OpenSequence]:
        """Find the rows anew once some have left; return these."""
        if left and cohort.sequences:
            cohort.row_map = self._base.row_map(cohort.owners)
        return left


def generate(base: AdaptedBase, sequences: Sequence[OpenSequence], owners: Owners, worker: int = 0) -> None:
    """Write sequences until each has ended; see `Generation`."""
    for sequence in sequences:
        sequence.begin()
    generation = Generation(base, worker)
    generation.join(sequences, owners)
    while len(generation):
        generation.step()


@dataclass
class _Cohort:
    """Sequences with one cache, each with the token that the next step begins with."""

    decoding: Decoding
    sequences: list[OpenSequence]
    owners: Owners
    tokens_n: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    row_map: RowMap[Any] | None = None

    def take(self, logits_nV: Tensor) -> list[OpenSequence]:
        """Give each sequence its next token; return those that have ended with it, which leave."""
        values_n2, tokens_n2 = logits_nV.topk(2, dim=-1)
        # By how much the likeliest beats the second; NaN where a logit is NaN or infinite: such logits come first.
        margins_n = torch.where(values_n2[:, 0].isfinite(), values_n2[:, 0] - values_n2[:, 1], torch.nan)
        columns = zip(self.sequences, logits_nV, tokens_n2[:, 0].tolist(), margins_n.tolist(), strict=True)
        self.tokens_n = np.array([own.add(*column) for own, *column in columns], np.int64)
        return self.leave(np.array([not own.is_over for own in self.sequences]))

    def leave(self, stays: npt.NDArray[np.bool_]) -> list[OpenSequence]:
        """Keep these sequences; return the others."""
        ended = [sequence for sequence, stay in zip(self.sequences, stays.tolist(), strict=True) if not stay]
        if ended:
            order = closed_up(stays, self.owners)
            if len(order):
                self.decoding.select(order)
                self.decoding.trim()
            self.sequences = [self.sequences[i] for i in order.tolist()]
            self.owners, self.tokens_n = self.owners[order], self.tokens_n[order]
        return ended


def closed_up(stays: npt.NDArray[np.bool_], owners: Owners) -> Indices:
    """Return which row stands where once others have left: each owner's side by side, and few rows in another place.

    A cache copies the rows that move, and no others.

    Args:
        stays: Which rows continue, (n,).
        owners: Whose each row is, (n,).
    """
    order = np.empty(int(stays.sum()), np.int64)
    start = 0
    for owner in dict.fromkeys(owners.tolist()):
        own = np.flatnonzero(stays & (owners == owner))
        places = np.arange(start, start + len(own))
        kept = np.intersect1d(own, places)
        order[kept] = kept
        order[np.setdiff1d(places, kept)] = np.setdiff1d(own, kept)
        start += len(own)
    return order


def _read_prompts(
    base: AdaptedBase, prompts: Sequence[npt.NDArray[np.int32]], owners: Owners, worker: int
) -> tuple[Decoding, Tensor]:
    """Compute the prompts of all rows; return the rows as they continue, and the last token's states, (n, D)."""
    begun, device = Decoding(base.model), base.device
    _, first, group_of_n = np.unique(owners, return_index=True, return_inverse=True)
    # What the prompts of each owner begin with is computed once, where that is worth it. It leaves out the last token,
    # whose state is read.
    own = [[prompts[i] for i in np.flatnonzero(group_of_n == group).tolist()] for group in range(len(first))]
    sizes = [min(common_beginning(rows), min(map(len, rows)) - 1) for rows in own]
    saved = sum(size * (len(rows) - 1) for size, rows in zip(sizes, own, strict=True))
    is_begun = begun.allows_gaps and is_worth_beginning(sum(map(len, prompts)), saved)
    order = np.argsort(first)  # owners as they stand
    begun_of_n = np.argsort(order)[group_of_n]
    if is_begun:
        with base.computing_whole(base.row_map(owners[first[order]]), worker):
            begun.compute(
                *padded([prompts[int(first[group])][: sizes[group]] for group in order.tolist()], "left", device)
            )
        prompts = [prompt[sizes[group] :] for prompt, group in zip(prompts, group_of_n.tolist(), strict=True)]
    parts, states = list[Decoding](), list[Tensor]()
    runs = [np.arange(len(prompts))]
    if begun.can_be_joined:
        runs = plan_prompts(np.array([len(prompt) for prompt in prompts]), device)
    for rows in runs:
        decoding = begun.forked(begun_of_n[rows]) if is_begun else Decoding(base.model)
        with base.computing_whole(base.row_map(owners[rows]), worker):
            states.append(decoding.compute(*padded([prompts[row] for row in rows.tolist()], "left", device))[:, -1])
        parts.append(decoding)
    places = torch.from_numpy(np.argsort(np.concatenate(runs))).to(device)
    return Decoding.joined(parts, runs), torch.cat(states)[places]
