"""Rows as token ids, with what is read of each row and what that should be; flat arrays, for fast batches. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths. Row i is `values[starts[i] : starts[i] + lengths[i]]`.

    Args:
        values: All rows' values one after the other.
        starts: int64 (N,).
        lengths: int32 (N,), read-only.
    """

    values: npt.NDArray[Any]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]

    @classmethod
    def of(cls, rows: Sequence[Sequence[Any] | npt.NDArray[Any]], dtype: npt.DTypeLike) -> Ragged:
        """Return rows given one by one."""
        lengths = np.array([len(row) for row in rows], np.int32)
        flat = np.concatenate([np.asarray(row, dtype) for row in rows]) if rows else np.empty(0, dtype)
        return cls.joined(flat, lengths)

    @classmethod
    def joined(cls, values: npt.NDArray[Any], lengths: npt.NDArray[np.integer]) -> Ragged:
        """Return rows that stand in `values` one after the other."""
        counts = lengths.astype(np.int32)
        starts = np.cumsum(counts, dtype=np.int64) - counts
        counts.flags.writeable = False
        return cls(values, starts, counts)

    @classmethod
    def single(cls, values: npt.NDArray[Any]) -> Ragged:
        """Return rows of one value each, values of shape (N,)."""
        return cls.joined(values, np.ones(len(values), np.int32))

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> npt.NDArray[Any]:
        """Return one row, a view."""
        return self.values[self.starts[index] : self.starts[index] + self.lengths[index]]

    def take(self, indices: Indices) -> Ragged:
        """Return the rows of `indices`, in that order; values are shared."""
        lengths = self.lengths[indices]
        lengths.flags.writeable = False
        return Ragged(self.values, self.starts[indices], lengths)

    def behind(self, size: int) -> Ragged:
        """Return what follows the first `size` values of each row, which has as many at least; values are shared."""
        lengths = self.lengths - np.int32(size)
        lengths.flags.writeable = False
        return Ragged(self.values, self.starts + size, lengths)

    def flat(self, indices: Indices) -> npt.NDArray[Any]:
        """Return the values of these rows, row after row."""
        lengths = self.lengths[indices]
        first = np.cumsum(lengths) - lengths
        values: npt.NDArray[Any] = self.values[
            np.arange(lengths.sum()) + np.repeat(self.starts[indices] - first, lengths)
        ]
        return values


@dataclass(frozen=True)
class EncodedRows:
    """Token ids of rows, and of each row the positions that are read and the targets there.

    Args:
        ids: Token ids, int32; no row is empty.
        types: int8 like `ids.values`, for tokenizers that number their segments.
        positions: Positions of each row's own tokens, from 0, whose last hidden states are read, int32 and ascending;
            None where the base's head reads each row, and gives one output a row.
        targets: What each read should give: one a position, or one a row without positions. None where rows are only
            asked, not learnt.
        prompts: Beginnings that several rows share: each is computed once for all that continue it. `ids` and
            `positions` are then of what follows it.
        prompt_of: Which of `prompts` each row continues, (N,), int64, ascending.
        lost: Tokens of each row that were left out to keep `max_length`, (N,); None where they are not counted.
        extras: What else the kind needs to score a row, as int32 numbers in a form of its own; no pass sees it.
    """

    ids: Ragged
    types: npt.NDArray[np.int8] | None = None
    positions: Ragged | None = None
    targets: Ragged | None = None
    prompts: Ragged | None = None
    prompt_of: npt.NDArray[np.int64] | None = None
    lost: npt.NDArray[np.int32] | None = None
    extras: Ragged | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row, (N,), read-only."""
        return self.ids.lengths

    @property
    def cut(self) -> npt.NDArray[np.bool_] | None:
        """Whether tokens of a row were left out to keep `max_length`, (N,); None where they are not counted."""
        return None if self.lost is None else self.lost > 0

    def counts(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Return how much is read of each of these rows, (n,)."""
        return (
            np.ones(len(indices), np.int64)
            if self.positions is None
            else self.positions.lengths[indices].astype(np.int64)
        )

    def take(self, indices: Indices) -> EncodedRows:
        """Return the rows of `indices`, in that order; token ids are shared."""
        positions, targets = (None if part is None else part.take(indices) for part in (self.positions, self.targets))
        prompt_of = None if self.prompt_of is None else self.prompt_of[indices]
        lost = None if self.lost is None else self.lost[indices]
        extras = None if self.extras is None else self.extras.take(indices)
        return replace(
            self,
            ids=self.ids.take(indices),
            positions=positions,
            targets=targets,
            prompt_of=prompt_of,
            lost=lost,
            extras=extras,
        )

    def with_prompts(self) -> EncodedRows:
        """Return the same rows with the prompts that they share in front of each: what shared prompts mean."""
        if self.prompts is None or self.prompt_of is None:
            return self
        before = self.prompts.take(self.prompt_of)
        every = np.arange(len(self))
        ids = Ragged.of([np.append(before.row(i), self.ids.row(i)) for i in range(len(self))], np.int32)
        positions = self.positions
        if positions is not None:
            moved = positions.flat(every) + np.repeat(before.lengths, positions.lengths)
            positions = Ragged.joined(moved.astype(np.int32), positions.lengths)
        return replace(self, ids=ids, positions=positions, prompts=None, prompt_of=None)

    def behind(self, size: int) -> EncodedRows:
        """Return what follows the first tokens of each row, which are not read; of each prompt, where there are any."""
        if self.prompts is not None:
            return replace(self, prompts=self.prompts.behind(size))
        positions = self.positions
        if positions is not None:
            positions = Ragged.joined(positions.flat(np.arange(len(self))) - np.int32(size), positions.lengths)
        return replace(self, ids=self.ids.behind(size), positions=positions)

    def padded(self, indices: Indices, pad_id: int, side: str = "right") -> dict[str, npt.NDArray[np.int64]]:
        """Return model inputs (B, T), int64, padded on one side; T is the longest row's length."""
        lengths_B = self.lengths[indices]
        columns_BT = np.arange(int(lengths_B.max()))[None, :].repeat(len(lengths_B), axis=0)
        if side == "left":
            columns_BT -= lengths_B.max() - lengths_B[:, None]
        mask_BT = (columns_BT >= 0) & (columns_BT < lengths_B[:, None])
        where = (self.ids.starts[indices][:, None] + columns_BT)[mask_BT]
        ids = _scatter(self.ids.values[where], mask_BT, pad_id)
        inputs = {"input_ids": ids, "attention_mask": mask_BT.astype(np.int64)}
        if self.types is not None:
            inputs["token_type_ids"] = _scatter(self.types[where], mask_BT, 0)
        return inputs

    def reads(self, indices: Indices, side: str = "right") -> npt.NDArray[np.int64] | None:
        """Return row and column of each read in the batch that `padded` makes, (M, 2); None where a head reads."""
        if self.positions is None:
            return None
        counts, lengths = self.positions.lengths[indices], self.lengths[indices]
        columns = self.positions.flat(indices).astype(np.int64)
        if side == "left":
            columns += np.repeat(lengths.max() - lengths, counts)
        return np.stack([np.repeat(np.arange(len(counts)), counts), columns], axis=1)


def _scatter(values: npt.NDArray[Any], mask_BT: npt.NDArray[np.bool_], fill: int) -> npt.NDArray[np.int64]:
    out = np.full(mask_BT.shape, fill, dtype=np.int64)
    out[mask_BT] = values
    return out
