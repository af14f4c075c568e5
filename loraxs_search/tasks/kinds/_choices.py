"""The options of rows as tokens: kept with the rows' own, computed as rows that share prompts, and compared.

Letters: n rows, K options of all of them, one row's after the other's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds._templates import continued_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Choices:
    """The options of n rows.

    Args:
        tokens: Of each option of each row.
        num_bytes: Of each option of each row, without white space around it.
        labels: Which option is right, (n,); -1 where that is not known.
    """

    tokens: list[list[list[int]]]
    num_bytes: list[list[int]]
    labels: list[int]

    @classmethod
    def of(
        cls, options: Sequence[Sequence[str]], labels: npt.NDArray[np.int64], tokenizer: PreTrainedTokenizerBase
    ) -> Choices:
        """Return the tokens of each row's options as they continue a prompt."""
        texts = list(dict.fromkeys(text for own in options for text in own))
        ids = dict(zip(texts, continued_ids(texts, tokenizer), strict=True))
        sizes = {text: len(text.strip().encode()) for text in texts}
        tokens, num_bytes = (
            [[ids[text] for text in own] for own in options],
            [[sizes[text] for text in own] for own in options],
        )
        return cls(tokens, num_bytes, labels.tolist())

    def packed(self) -> Ragged:
        """Return each row's options as numbers: label, how many, tokens and bytes of each, then the tokens."""
        rows = []
        for label, tokens, num_bytes in zip(self.labels, self.tokens, self.num_bytes, strict=True):
            flat = [token for option in tokens for token in option]
            rows.append([label, len(tokens), *map(len, tokens), *num_bytes, *flat])
        return Ragged.of(rows, np.int32)

    @classmethod
    def unpacked(cls, rows: Ragged) -> Choices:
        """Return what `packed` made rows of."""
        choices = cls([], [], [])
        for i in range(len(rows)):
            label, num_options, *rest = rows.row(i).tolist()
            lengths, num_bytes, flat = rest[:num_options], rest[num_options : 2 * num_options], rest[2 * num_options :]
            ends = np.cumsum(lengths).tolist()
            choices.labels.append(label)
            choices.num_bytes.append(num_bytes)
            choices.tokens.append([flat[end - size : end] for end, size in zip(ends, lengths, strict=True)])
        return choices

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each row's options begin among all, (n,)."""
        counts = np.array([len(own) for own in self.tokens], np.int64)
        starts: npt.NDArray[np.int64] = np.cumsum(counts) - counts
        return starts

    @property
    def right(self) -> npt.NDArray[np.int64]:
        """Where each row's right option is among all, (n,)."""
        return self.starts + np.array(self.labels, np.int64)

    def behind(self, prompts: Sequence[npt.NDArray[np.int32]]) -> EncodedRows:
        """Return all options as K rows behind the prompts of their rows, each learnt as an answer is.

        A row begins with its prompt's last token, at which its first token is read.
        """
        options = [option for own in self.tokens for option in own]
        row_of = [row for row, own in enumerate(self.tokens) for _ in own]
        ids = [[int(prompts[row][-1]), *option[:-1]] for row, option in zip(row_of, options, strict=True)]
        return EncodedRows(
            ids=Ragged.of(ids, np.int32),
            positions=Ragged.of([range(len(option)) for option in options], np.int32),
            targets=Ragged.of(options, np.int64),
            prompts=Ragged.of([prompt[:-1] for prompt in prompts], np.int32),
            prompt_of=np.array(row_of, np.int64),
        )

    def scores(self, losses: npt.NDArray[np.float32], normalize: str) -> list[npt.NDArray[np.float64]]:
        """Return each row's options' log-likelihoods, normalised.

        Args:
            losses: Of all options, (K,): each the sum over its tokens.
            normalize: `none`, or what a sum is divided by: `tokens` or `bytes`.
        """
        likelihoods, sizes = -losses.astype(np.float64), np.ones(len(losses))
        if normalize != "none":
            sizes = np.array([*self._sizes(normalize)], np.float64)
        return np.split(likelihoods / sizes, self.starts[1:])

    def _sizes(self, normalize: str) -> Iterator[int]:
        for tokens, num_bytes in zip(self.tokens, self.num_bytes, strict=True):
            yield from map(len, tokens) if normalize == "tokens" else num_bytes
