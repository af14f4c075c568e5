"""The options of rows as tokens: kept with the rows' own, computed as rows that share prompts, and compared.

Letters: n rows, K options of all of them, one row's after the other's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds._requests import PassOutputs
from loraxs_search.tasks.kinds._templates import continued_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from loraxs_search.tasks.batch import Batch


_Place = tuple[int, list[int]]  # a row, and which of its reads


@dataclass(frozen=True)
class _OptionRows:
    """All K options, in as few rows as give each one's likelihood.

    A row begins with its prompt's last token, at which the first token of an option is read. Options that agree but for
    their last tokens are one row, which is read for each of them: with single tokens for options, a prompt is computed
    once for all.

    Args:
        rows: One or more for each prompt; a read and its target are there once.
        places: The row of each option, and which of its reads are the option's.
    """

    rows: EncodedRows
    places: list[_Place]

    @property
    def width(self) -> int:
        """The most reads of a row."""
        assert self.rows.positions is not None
        return int(self.rows.positions.lengths.max())

    def sums(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the sum of each option's values, (K,), of those of each row's reads, (rows, width)."""
        return np.array([values[row, reads].sum() for row, reads in self.places], values.dtype)


@dataclass(frozen=True)
class ReadLosses:
    """A `reduce`: the loss of each read, (n, width) float32, and whether its target was the likeliest, int64.

    Args:
        width: The most reads of a row; what a row lacks is 0.
    """

    width: int

    def __call__(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        import torch

        from loraxs_search.tasks.kinds._token_loss import token_losses

        losses, is_likeliest = token_losses(outputs, batch)
        columns = torch.arange(self.width, device=losses.device)
        is_read = columns[None, :] < batch.counts[:, None]
        shape = (len(batch.counts), self.width)
        wide = losses.new_zeros(shape).masked_scatter(is_read, losses)
        return wide, is_likeliest.new_zeros(shape).masked_scatter(is_read, is_likeliest).long()


@dataclass(frozen=True)
class Choices:
    """The options of n rows.

    Args:
        tokens: Of each option of each row.
        texts: Each option of each row, without white space around it.
        labels: Which option is right, (n,); -1 where that is not known.
    """

    tokens: list[list[list[int]]]
    texts: list[list[str]]
    labels: list[int]

    @classmethod
    def of(
        cls, options: Sequence[Sequence[str]], labels: npt.NDArray[np.int64], tokenizer: PreTrainedTokenizerBase
    ) -> Choices:
        """Return the tokens of each row's options as they continue a prompt."""
        texts = list(dict.fromkeys(text for own in options for text in own))
        ids = dict(zip(texts, continued_ids(texts, tokenizer), strict=True))
        tokens = [[ids[text] for text in own] for own in options]
        return cls(tokens, [[text.strip() for text in own] for own in options], labels.tolist())

    def packed(self) -> Ragged:
        """Return each row's options as numbers: label, how many, tokens and bytes of each, the tokens, the bytes."""
        rows = []
        for label, tokens, texts in zip(self.labels, self.tokens, self.texts, strict=True):
            flat, encoded = [token for option in tokens for token in option], [text.encode() for text in texts]
            written = np.frombuffer(b"".join([*encoded, b"\0" * (-sum(map(len, encoded)) % 4)]), "<i4").tolist()
            rows.append([label, len(tokens), *map(len, tokens), *map(len, encoded), *flat, *written])
        return Ragged.of(rows, np.int32)

    @classmethod
    def unpacked(cls, rows: Ragged) -> Choices:
        """Return what `packed` made rows of."""
        choices = cls([], [], [])
        for i in range(len(rows)):
            label, num_options, *rest = rows.row(i).tolist()
            lengths, num_bytes, flat = rest[:num_options], rest[num_options : 2 * num_options], rest[2 * num_options :]
            written = np.array(flat[sum(lengths) :], "<i4").tobytes()
            choices.labels.append(label)
            choices.tokens.append(_parts(flat, lengths))
            choices.texts.append([text.decode() for text in _parts(written, num_bytes)])
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

    def behind(self, prompts: Sequence[npt.NDArray[np.int32]]) -> _OptionRows:
        """Return all options as rows behind their prompts; see `_OptionRows`."""
        ids, reads, prompt_of, places = list[list[int]](), list[list[tuple[int, int]]](), list[int](), list[_Place]()
        for number, own in enumerate(self.tokens):
            group_of, rows = _groups(own), dict[tuple[int, ...], int]()
            for fed in dict.fromkeys(group_of):
                rows[fed] = len(ids)
                options = [option for option, group in zip(own, group_of, strict=True) if group == fed]
                ids.append([int(prompts[number][-1]), *fed])
                reads.append(sorted({read for option in options for read in enumerate(option)}))
                prompt_of.append(number)
            places += [
                (rows[fed], [reads[rows[fed]].index(read) for read in enumerate(option)])
                for option, fed in zip(own, group_of, strict=True)
            ]
        rows_of_options = EncodedRows(
            ids=Ragged.of(ids, np.int32),
            positions=Ragged.of([[position for position, _ in own] for own in reads], np.int32),
            targets=Ragged.of([[token for _, token in own] for own in reads], np.int64),
            prompts=Ragged.of([prompt[:-1] for prompt in prompts], np.int32),
            prompt_of=np.array(prompt_of, np.int64),
        )
        return _OptionRows(rows_of_options, places)

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
        for tokens, texts in zip(self.tokens, self.texts, strict=True):
            yield from map(len, tokens) if normalize == "tokens" else (len(text.encode()) for text in texts)


def _parts(values: Any, sizes: Sequence[int]) -> list[Any]:
    """Return the parts of a sequence that have these sizes, one behind the other."""
    ends = np.cumsum(sizes).tolist()
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _groups(options: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return for each option the tokens that are computed for it: its own but the last, or those of a longer one that
    begins with them."""
    fed = [tuple(option[:-1]) for option in options]
    longest = sorted(set(fed), key=len, reverse=True)
    return [next(it for it in longest if it[: len(own)] == own) for own in fed]
