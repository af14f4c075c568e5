"""One row while it is written: its tokens and text so far, which token follows, and whether it continues.

Letters: n rows, V tokens of the vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraxs_search.tasks.encoded import Ragged
from loraxs_search.tasks.kinds import Generated, GenerateRequest, Sampling, TokenLogprobs

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
            self._move(tokens, len(tokens) - _WINDOW // 4)
        return piece

    def _move(self, tokens: Sequence[int], start: int) -> None:
        """Begin a new window, unless it would begin inside a character or with nothing to see."""
        known = self._decode(tokens[start:])
        if known.strip() and _INCOMPLETE not in known and self._known.endswith(known.lstrip()):
            self._start, self._known = start, known

    def _decode(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # of one row
        return text


def _first_stop(text: str, stop: Sequence[str], added: int) -> int | None:
    """Return where the first of some stop strings begins, if one ends within the last `added` characters."""
    found = [at for word in stop if (at := text.find(word, max(0, len(text) - added - len(word) + 1))) >= 0]
    return min(found, default=None)


def unsure(text: str, stop: Sequence[str]) -> int:
    """Return how many of the last characters may be the beginning of a stop string."""
    longest = min(len(text), max((len(word) for word in stop), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(word.startswith(text[-n:]) for word in stop)), 0)


def two_largest(logits_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest token of each row, (n,) int64, and by how much it beats the second, (n,) float32.

    The margin is NaN where a logit is NaN or positive infinity: such logits come first.
    """
    values_n2, tokens_n2 = logits_nV.topk(2, dim=-1)
    largest_n, margin_n = values_n2[:, 0], values_n2[:, 0] - values_n2[:, 1]
    return tokens_n2[:, 0], torch.where(largest_n.isfinite(), margin_n, torch.nan)


def _uniform_numbers(sampling: Sampling, prompt: npt.NDArray[np.integer], count: int) -> npt.NDArray[np.float64]:
    """Return what a row draws with, one number in [0, 1) for each step, (count,): from seed, prompt and step."""
    digest = hashlib.sha256(f"{sampling.seed} {prompt.tolist()}".encode()).digest()
    # Raw draws, since numpy keeps those stable for ever but not what Generator makes of them.
    bits = np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "little")))
    return (bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


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
        sampling = request.sampling
        self._numbers = None if sampling is None else _uniform_numbers(sampling, self.prompt, request.max_new_tokens)
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

    @property
    def samples(self) -> bool:
        """Whether its tokens are drawn."""
        return self._numbers is not None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log probabilities of its tokens are kept."""
        return self._request.logprobs is not None

    def note_logprobs(self, logits_V: Tensor, token: int) -> None:
        """Keep the log probabilities of the next token, and of the likeliest ones."""
        logprobs_V = torch.log_softmax(logits_V.float(), 0)
        values, ids = logprobs_V.topk(self._request.logprobs or 0)
        likeliest = dict(zip(ids.tolist(), values.tolist(), strict=True))
        self.logprobs.append(TokenLogprobs(token, float(logprobs_V[token]), likeliest))

    @property
    def text(self) -> str:
        """What was written, up to the stop string."""
        return self._growing.text[: self._stopped]

    def drawn(self, logits_V: Tensor) -> int:
        """Return the next token by its own random number."""
        assert self._numbers is not None and self._request.sampling is not None
        return draw(logits_V, self._request.sampling, float(self._numbers[len(self.tokens)]))

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
        self._stopped = _first_stop(self._growing.text, stop, len(piece)) if stop else None
        if self._stopped is not None:
            self.ended = True
        if self._on_text:
            held = 0 if over or self._stopped is not None else unsure(self._growing.text, stop)
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
