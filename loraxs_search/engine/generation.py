"""Writing: sequences that a base continues token by token; they join and leave between tokens.

Prompts are computed in passes of like length, with little padding; what those of one owner begin with is computed once.
Each pass has its own cache, and caches are joined so that every row ends in the same column.

Letters: n rows, T tokens of each with padding, V tokens of the vocabulary, D the width of hidden states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from loraxs_search.engine.kv_cache import Decoding
from loraxs_search.engine.layers import RowMap
from loraxs_search.engine.passes import AdaptedBase, Owners, base_of
from loraxs_search.engine.prefix_sharing import common_beginning, is_worth_beginning, padded
from loraxs_search.tasks.encoded import RUN_TOKENS, EncodedRows, Ragged, cheapest_runs
from loraxs_search.tasks.kinds import Generated, GenerateRequest, Sampling, TokenLogprobs
from loraxs_search.tasks.prepared import end_ids

# Letters: n rows, V tokens of the vocabulary.

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


def unsure(text: str, stop: Sequence[str]) -> int:
    """Return how many of the last characters may be the beginning of a stop string."""
    longest = min(len(text), max((len(word) for word in stop), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(word.startswith(text[-n:]) for word in stop)), 0)


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
        self._stopped: int | None = None  # if the stop string begins

    @property
    def max_length(self) -> int:
        """The most tokens that it may have, its prompt's included."""
        return len(self.prompt) + self._request.max_new_tokens

    @property
    def span(self) -> tuple[int, int]:
        """Its tokens, prompt included, and how many more may follow."""
        return len(self.prompt) + len(self.tokens), self._request.max_new_tokens - len(self.tokens)

    def choose(self, logits_V: Tensor, likeliest: int, margin: float) -> int:
        """Return the next token, the likeliest or one drawn by its own random number; keep log probabilities if asked.

        Args:
            margin: See `add`.
        """
        token, sampling = likeliest, self._request.sampling
        if sampling is not None and self._numbers is not None and not np.isnan(margin):
            token = draw(logits_V, sampling, float(self._numbers[len(self.tokens)]))
        if self._request.logprobs is not None:
            logprobs_V = torch.log_softmax(logits_V.float(), 0)
            values, ids = logprobs_V.topk(self._request.logprobs)
            first = dict(zip(ids.tolist(), values.tolist(), strict=True))
            self.logprobs.append(TokenLogprobs(token, float(logprobs_V[token]), first))
        return token

    @property
    def text(self) -> str:
        """What was written, up to the stop string."""
        return self._growing.text[: self._stopped]

    def add(self, token: int, margin: float) -> bool:
        """Add a token; return whether another one follows.

        Args:
            margin: By how much the two largest logits differ; where it is NaN, the row is over.
        """
        self.tokens.append(token)
        self.margin = np.nan if np.isnan(margin) else min(self.margin, margin)
        self.ended = token in self._ends
        over = self.ended or len(self.tokens) == self._request.max_new_tokens or bool(np.isnan(self.margin))
        if self._request.stop or self._on_text or over:
            self._read(over)
        self.is_over = over or self.ended
        return not self.is_over

    def _read(self, over: bool) -> None:
        stop = self._request.stop
        piece = self._growing.add(self.tokens[:-1] if self.ended else self.tokens, last=over)
        text = self._growing.text  # a stop string may end within the new piece
        starts = [text.find(word, max(0, len(text) - len(piece) - len(word) + 1)) for word in stop]
        self._stopped = min((at for at in starts if at >= 0), default=None)
        if self._stopped is not None:
            self.ended = True
        if self._on_text:
            held = 0 if over or self._stopped is not None else unsure(text, stop)
            ready = self.text[self._sent : len(self.text) - held]
            self._sent += len(ready)
            if ready:
                self._on_text(ready)


def generated(rows: Sequence[OpenSequence]) -> Generated:
    """Return the results of a request's rows, in their order."""
    return Generated(
        texts=[row.text for row in rows],
        tokens=Ragged.of([row.tokens for row in rows], np.int32),
        ended=np.array([row.ended for row in rows]),
        margins=np.array([row.margin for row in rows], np.float32),
        logprobs=[row.logprobs for row in rows],
    )


Indices = npt.NDArray[np.int64]
Prompts = Sequence[npt.NDArray[np.int32]]

CPU_ROWS, DEVICE_ROWS = 64, 256  # of a batch
MAX_TOKENS = 32768  # of a batch, prompts and what may be written
_CPU_TOKENS = 4096  # of a pass; larger ones are no faster
# What one more pass costs on an accelerator, in tokens: a guess, as all that one row takes there is calls.
_DEVICE_RUN_TOKENS, _DEVICE_TOKENS = 4096, 65536


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
        tokens_n, stays = _next_tokens(decoding.project(states_nD), sequences)
        joining = _Cohort(decoding, list(sequences), np.asarray(owners), tokens_n)
        ended = joining.leave(stays)
        if joining.sequences:
            can_join = self._cohorts and decoding.can_be_joined
            cohort = _Cohort.joined(self._cohorts.pop(), joining) if can_join else joining
            self._cohorts.append(cohort.placed(self._base))
        return ended

    @torch.inference_mode()
    def step(self) -> list[OpenSequence]:
        """Give each sequence one more token; return those that have ended with it, which leave."""
        ended = []
        for cohort in self._cohorts:
            with self._base.computing_whole(cohort.row_map, self._worker):
                logits_nV = cohort.decoding.project(cohort.decoding.follow(cohort.tokens_n))
            cohort.tokens_n, stays = _next_tokens(logits_nV, cohort.sequences)
            if not stays.all():
                ended += cohort.leave(stays)
                if cohort.sequences:
                    cohort.placed(self._base)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.sequences]
        return ended

    def drop(self, sequences: Collection[OpenSequence]) -> None:
        """Remove sequences that nobody waits for any more."""
        for cohort in self._cohorts:
            stays = np.array([own not in sequences for own in cohort.sequences])
            if cohort.leave(stays) and cohort.sequences:
                cohort.placed(self._base)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.sequences]


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
    tokens_n: Indices
    row_map: RowMap[Any] | None = None

    def placed(self, base: AdaptedBase) -> _Cohort:
        """Find the rows anew once some have come or gone; return itself."""
        self.row_map = base.row_map(self.owners)
        return self

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

    @classmethod
    def joined(cls, first: _Cohort, second: _Cohort) -> _Cohort:
        """Return the sequences of both, each owner's side by side; both are used up."""
        owners = np.concatenate([first.owners, second.owners])
        order = np.argsort(owners, kind="stable")
        places = np.split(np.argsort(order), [len(first.owners)])
        decoding = Decoding.joined([first.decoding, second.decoding], places)
        decoding.trim()
        every = [*first.sequences, *second.sequences]
        tokens_n = np.concatenate([first.tokens_n, second.tokens_n])[order]
        return cls(decoding, [every[i] for i in order.tolist()], owners[order], tokens_n)


# ---- batches ---------------------------------------------------------------------------------------------------------
def default_rows(device: torch.device) -> int:
    """Return how many rows a batch may have."""
    return CPU_ROWS if device.type == "cpu" else DEVICE_ROWS


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


def generation_batches(lengths: Indices, max_rows: int, num_workers: int = 1) -> list[Indices]:
    """Plan batches: every row exactly once, longest first, as few as may be, and as even as may be.

    Args:
        lengths: Tokens that each row may have in the end, (n,).
        max_rows: No batch has more rows; nor more padded tokens than `MAX_TOKENS`, unless it is one row.
        num_workers: Batches that are written side by side: none of these workers is left without rows.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[Indices] = []
    start = 0
    while start < len(order):
        num_left = len(order) - start
        fitting = max(1, min(max_rows, MAX_TOKENS // int(lengths[order[start]])))
        num_batches = max(-(-num_left // fitting), num_workers - len(batches))
        size = -(-num_left // num_batches)
        batches.append(order[start : start + size])
        start += size
    return batches


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


def _next_tokens(logits_nV: Tensor, sequences: Sequence[OpenSequence]) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Give each sequence its next token; return these, (n,) int64, and which continue, (n,) bool."""
    values_n2, tokens_n2 = logits_nV.topk(2, dim=-1)
    # By how much the likeliest beats the second; NaN where a logit is NaN or infinite: such logits come first.
    margins_n = torch.where(values_n2[:, 0].isfinite(), values_n2[:, 0] - values_n2[:, 1], torch.nan)
    tokens, margins = tokens_n2[:, 0].tolist(), margins_n.tolist()
    for i, sequence in enumerate(sequences):
        tokens[i] = sequence.choose(logits_nV[i], tokens[i], margins[i])
    stays = [own.add(token, margin) for own, token, margin in zip(sequences, tokens, margins, strict=True)]
    return np.array(tokens, np.int64), np.array(stays, bool)


# ---- prompts ---------------------------------------------------------------------------------------------------------
def _read_prompts(base: AdaptedBase, prompts: Prompts, owners: Owners, worker: int) -> tuple[Decoding, Tensor]:
    """Compute the prompts of all rows; return the rows as they continue, and the last token's states, (n, D)."""
    device = base.device
    begun, rest, begun_of_n = _begun(base, prompts, owners, worker)
    parts, states = list[Decoding](), list[Tensor]()
    runs = _runs(rest, device) if Decoding(base.model).can_be_joined else [np.arange(len(prompts))]
    for rows in runs:
        decoding = Decoding(base.model) if begun is None else begun.forked(begun_of_n[rows])
        with base.computing_whole(base.row_map(owners[rows]), worker):
            states.append(decoding.compute(*_left_padded([rest[row] for row in rows], device))[:, -1])
        parts.append(decoding)
    order = torch.from_numpy(np.argsort(np.concatenate(runs))).to(device)
    return Decoding.joined(parts, runs), torch.cat(states)[order]


def _runs(prompts: Prompts, device: torch.device) -> list[Indices]:
    """Return the rows of each pass, ascending."""
    lengths = np.array([len(prompt) for prompt in prompts])
    order = np.argsort(-lengths, kind="stable")
    max_tokens, cost = (_CPU_TOKENS, RUN_TOKENS) if device.type == "cpu" else (_DEVICE_TOKENS, _DEVICE_RUN_TOKENS)
    return [np.sort(order[run]) for run in cheapest_runs(lengths[order].tolist(), max_tokens, cost)]


def _begun(
    base: AdaptedBase, prompts: Prompts, owners: Owners, worker: int
) -> tuple[Decoding | None, list[npt.NDArray[np.int32]], Indices]:
    """Compute what the prompts of each owner begin with, where that is worth it.

    Returns:
        A row for each owner, or None; what follows of each prompt; and the row that each continues from, (n,).
    """
    decoding = Decoding(base.model)
    _, first, group_of_n = np.unique(owners, return_index=True, return_inverse=True)
    own = [[prompts[i] for i in np.flatnonzero(group_of_n == group).tolist()] for group in range(len(first))]
    # What the last token gives is read, so that one follows.
    sizes = [min(common_beginning(rows), min(map(len, rows)) - 1) for rows in own]
    saved = sum(size * (len(rows) - 1) for size, rows in zip(sizes, own, strict=True))
    if not (decoding.allows_gaps and is_worth_beginning(sum(map(len, prompts)), saved)):
        return None, list(prompts), group_of_n
    order = np.argsort(first)  # owners as they stand
    with base.computing_whole(base.row_map(owners[first[order]]), worker):
        decoding.compute(*_left_padded([prompts[first[group]][: sizes[group]] for group in order], base.device))
    rest = [prompt[sizes[group] :] for prompt, group in zip(prompts, group_of_n.tolist(), strict=True)]
    return decoding, rest, np.argsort(order)[group_of_n]


def _left_padded(prompts: Prompts, device: torch.device) -> tuple[Tensor, Tensor]:
    return padded(EncodedRows(Ragged.of(prompts, np.int32)), "left", device)
