"""One row while it is written: its tokens and text so far, and whether it goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraxs_search.tasks.encoded import Ragged
from loraxs_search.tasks.kinds import Write, Written
from loraxs_search.trial.growing_text import GrowingText, first_stop, unsure
from loraxs_search.trial.sampling import draw, uniform_numbers


class OpenRow:
    """A row of a `Write`.

    Args:
        number: Its place in the request.
        ends: Tokens that end it.
        on_text: Gets each piece of its text as soon as no stop string can begin in it.
    """

    def __init__(
        self,
        request: Write,
        number: int,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.prompt: npt.NDArray[np.int32] = request.source.ids.row(int(request.rows[number]))
        self._request, self._tokenizer, self._ends, self._on_text = request, tokenizer, ends, on_text
        sampling = request.sampling
        self._numbers = None if sampling is None else uniform_numbers(sampling, self.prompt, request.max_new_tokens)
        self.begin()

    def begin(self) -> None:
        """Forget what was written."""
        self.tokens: list[int] = []
        self.margin = np.inf
        self.ended = False
        self._growing = GrowingText(self._tokenizer)
        self._stopped: int | None = None  # where the stop string begins
        self._sent = 0

    @property
    def max_length(self) -> int:
        """The most tokens that it may have, its prompt's included."""
        return len(self.prompt) + self._request.max_new_tokens

    @property
    def samples(self) -> bool:
        """Whether its tokens are drawn."""
        return self._numbers is not None

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
        return not (over or self.ended)

    def _read(self, over: bool) -> None:
        stop = self._request.stop
        piece = self._growing.add(self.tokens[:-1] if self.ended else self.tokens, last=over)
        self._stopped = first_stop(self._growing.text, stop, len(piece)) if stop else None
        if self._stopped is not None:
            self.ended = True
        if self._on_text:
            held = 0 if over or self._stopped is not None else unsure(self._growing.text, stop)
            ready = self.text[self._sent : len(self.text) - held]
            self._sent += len(ready)
            if ready:
                self._on_text(ready)


def written(rows: Sequence[OpenRow]) -> Written:
    """Return what the rows of a request have come to, in their order."""
    return Written(
        texts=[row.text for row in rows],
        tokens=Ragged.of([row.tokens for row in rows], np.int32),
        ended=np.array([row.ended for row in rows]),
        margins=np.array([row.margin for row in rows], np.float32),
    )
