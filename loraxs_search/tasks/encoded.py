"""Rows as token ids, with what is read of each row and what that should be; and which rows form which batch.

No torch until a batch is made.

Arrays are flat, for fast batches. Batches are pure functions of row lengths, seed and step. Rows of like length are
batched together, so that little is padded; which ones is drawn anew for each seed and epoch. The order in which long
and short batches come is drawn only for the epoch: trials that share a pass have batches of like length at the same
step, whatever their seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.records.codec import Split

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

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
        where = np.arange(lengths.sum()) + np.repeat(self.starts[indices] - first, lengths)
        values: npt.NDArray[Any] = self.values[where]
        return values


@dataclass(frozen=True)
class EncodedRows:
    """Token ids of rows, and of each row the positions that are read and the targets there.

    Args:
        ids: Token ids, int32; no row is empty.
        types: int8 like `ids.values`, for tokenizers that number their segments.
        positions: Positions of each row's own tokens, from 0, whose last hidden states are read, or the outputs of a
            head that gives one a token, int32 and ascending; None if the head gives one output a row.
        targets: What each read should give: one a position, or without positions as many for each row. None if rows
            are only asked, not learnt.
        prompts: Beginnings that several rows share: each is computed once for all that continue it. `ids` and
            `positions` are then of what follows it.
        prompt_of: Which of `prompts` each row continues, (N,), int64, ascending.
        lost: Tokens of each row that were left out to keep `max_length`, (N,); None if they are not counted.
        extras: What else the kind needs to score a row, as int32 numbers in its own form; no pass sees it.
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
    def num_cut(self) -> int:
        """How many rows lost tokens to keep `max_length`; 0 where that is not counted."""
        return 0 if self.lost is None else int((self.lost > 0).sum())

    def counts(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Return how much is read of each of these rows, (n,)."""
        counts = np.ones(len(self), np.int64) if self.positions is None else self.positions.lengths
        return counts[indices].astype(np.int64)

    def whole_row(self, row: int) -> tuple[list[int], set[int]]:
        """Return the tokens of a row, and the places among them of those that are learnt.

        The last learnt token is no part of what the model reads: it is what is read of the last position.
        """
        tokens: list[int] = self.ids.row(row).tolist()
        if self.positions is None or self.targets is None:
            return tokens, set()
        places = [int(position) + 1 for position in self.positions.row(row)]
        targets: list[int] = self.targets.row(row).tolist()
        whole = [*tokens, targets[-1]] if places[-1:] == [len(tokens)] else tokens
        if [whole[place] for place in places] != targets:  # something else than the next token is learnt
            return tokens, set()
        return whole, set(places)

    def prompts_alone(self) -> Ragged:
        """Return what stands in each row before the first token that is learnt."""
        assert self.positions is not None  # there is no head
        ends = self.positions.values[self.positions.starts] + 1
        return Ragged.of([self.ids.row(row)[:end] for row, end in enumerate(ends)], np.int32)

    def take(self, indices: Indices) -> EncodedRows:
        """Return the rows of `indices`, in that order; token ids are shared."""
        of_rows = ("ids", "positions", "targets", "prompt_of", "lost", "extras")
        taken = {name: part.take(indices) for name in of_rows if (part := getattr(self, name)) is not None}
        return replace(self, **taken)

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
        inputs = {"input_ids": np.full(mask_BT.shape, pad_id, np.int64), "attention_mask": mask_BT.astype(np.int64)}
        inputs["input_ids"][mask_BT] = self.ids.values[where]
        if self.types is not None:
            inputs["token_type_ids"] = np.zeros(mask_BT.shape, np.int64)
            inputs["token_type_ids"][mask_BT] = self.types[where]
        return inputs

    def reads(self, indices: Indices, side: str = "right") -> npt.NDArray[np.int64] | None:
        """Return row and column of each read in the batch that `padded` makes, (M, 2); None without positions."""
        if self.positions is None:
            return None
        counts, lengths = self.positions.lengths[indices], self.lengths[indices]
        columns = self.positions.flat(indices).astype(np.int64)
        if side == "left":
            columns += np.repeat(lengths.max() - lengths, counts)
        return np.stack([np.repeat(np.arange(len(counts)), counts), columns], axis=1)


@dataclass(frozen=True)
class Batch:
    """B rows as tensors, on one device.

    Args:
        inputs: What the model takes: `input_ids`, `attention_mask` (B, T) int64, `token_type_ids` where the tokenizer
            makes them. Padded to the longest row, on the tokenizer's side.
        counts: How much is read of each row, (B,) int64; M in all.
        reads: Row and column of each read, row after row, (M, 2) int64; None if a head gives one output a row.
        targets: What each read should give, (M,), or of several values one after the other; empty where rows are only
            asked.
        num_tokens: Real tokens, padding not counted.
    """

    inputs: dict[str, Tensor]
    counts: Tensor
    reads: Tensor | None
    targets: Tensor
    num_tokens: int

    def row_sums(self, values: Tensor) -> Tensor:
        """Return the sum of each row's values.

        Args:
            values: One a read, (M,): float32, or bool to be counted.
        Returns:
            Shape (B,): float32, or int64 for bool; attached to the graph.
        """
        import torch

        if values.dtype is torch.bool:
            return self.row_sums(values.float()).long()
        return torch.segment_reduce(values, "sum", lengths=self.counts)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        reads = None if self.reads is None else self.reads.to(device)
        return replace(self, inputs=inputs, counts=self.counts.to(device), reads=reads, targets=self.targets.to(device))


class RowSource:
    """Rows of a task as tokens, batch by batch. Read-only: safe to share between threads.

    Args:
        tokenizer: The base's; asks for no more than to read it (`decode`, ids of special tokens).
        splits: The rows of the data set; none if an adapter is only asked.
        labels: What answers to the rows of each split are compared with.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        splits: Mapping[Split, EncodedRows] | None = None,
        labels: Mapping[Split, npt.NDArray[Any]] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._splits, self._labels = dict(splits or {}), dict(labels or {})
        self._pad_id, self._side = int(tokenizer.pad_token_id), str(tokenizer.padding_side)

    def encoded(self, source: Split | EncodedRows) -> EncodedRows:
        """Return the rows that a request names: those of a split, or those that it brings."""
        return source if isinstance(source, EncodedRows) else self._splits[source]

    def labels(self, split: Split) -> npt.NDArray[Any]:
        """Return what answers are compared with, (N,): int64 ids, float32 numbers or texts, read-only."""
        return self._labels[split]

    def lengths(self, source: Split | EncodedRows) -> npt.NDArray[np.int32]:
        """Return each row's number of tokens, (N,), read-only."""
        return self.encoded(source).lengths

    def collate(self, source: Split | EncodedRows, indices: npt.NDArray[np.integer] | Sequence[int]) -> Batch:
        """Return the rows of `indices`, in that order, as one batch on the CPU."""
        import torch

        rows, encoded = np.asarray(indices, dtype=np.int64), self.encoded(source)
        reads, targets = encoded.reads(rows, self._side), encoded.targets
        return Batch(
            inputs={name: torch.from_numpy(v) for name, v in encoded.padded(rows, self._pad_id, self._side).items()},
            counts=torch.from_numpy(encoded.counts(rows)),
            reads=None if reads is None else torch.from_numpy(reads),
            targets=torch.empty(0) if targets is None else torch.from_numpy(targets.flat(rows)),
            num_tokens=int(encoded.lengths[rows].sum()),
        )


RowNumbers = npt.NDArray[np.int64]

# Rows are shuffled, cut into windows of this many batches, and sorted by length within a window only: a whole-epoch
# sort would put the same rows together in each epoch.
_WINDOW_BATCHES = 32
_WINDOWS = 8  # at least, where there are batches enough: few rows are mixed anew too

# What one more batch costs beside its tokens (calls into the framework, small kernels), in tokens.
RUN_TOKENS = 128


class TrainingBatches:
    """One trial's training batches, each without walking through those before; they cost one plan an epoch.

    An epoch has every row exactly once, in batches of `batch_size`; one may be shorter. Its plan depends only on the
    arguments, on every machine. The epoch at hand is kept, 4 bytes a row: planned anew it would cost more than the step
    where rows are many.

    Args:
        lengths: Tokens of each row, shape (N,); not changed while this lives.
    """

    def __init__(self, lengths: Indices, batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = -1
        self._rows = np.empty(0, dtype=np.int32)  # of the epoch, batch after batch
        self._starts = np.empty(0, dtype=np.int32)  # where each batch begins, and the end of the last

    def at(self, step: int) -> RowNumbers:
        """Return the batch of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, -(-len(self._lengths) // self._batch_size))
        if epoch != self._epoch:
            lengths, size = self._lengths, self._batch_size
            order = _shuffled(len(lengths), self._seed, epoch, 0)
            window = size * min(_WINDOW_BATCHES, max(1, len(lengths) // (size * _WINDOWS)))
            grouped = [_by_length(lengths, order[start : start + window]) for start in range(0, len(order), window)]
            planned = [rows[start : start + size] for rows in grouped for start in range(0, len(rows), size)]
            by_length = np.argsort([lengths[rows].max(initial=0) for rows in planned], kind="stable")
            batches = [planned[i] for i in by_length[_shuffled(len(planned), 0, epoch, 1)]]
            self._rows = np.concatenate(batches).astype(np.int32)
            self._starts = np.cumsum([0, *map(len, batches)], dtype=np.int32)
            self._epoch = epoch
        return self._rows[self._starts[index] : self._starts[index + 1]].astype(np.int64)


def eval_batches(lengths: Indices, max_tokens: int) -> list[RowNumbers]:
    """Plan an evaluation: every row exactly once, longest first, each batch of at most `max_tokens` padded tokens.

    A row longer than `max_tokens` is a batch of one. Where lengths differ much, batches are smaller.
    """
    order = _by_length(lengths, np.arange(len(lengths), dtype=np.int64))[::-1]
    return [order[run] for run in cheapest_runs(np.maximum(lengths[order], 1).tolist(), max_tokens)]


def cheapest_runs(
    widths: Sequence[int], max_tokens: int, run_tokens: int = RUN_TOKENS, *, few_sizes: bool = False
) -> list[slice]:
    """Cut rows into runs that cost least: the padded tokens of each, and `run_tokens`.

    A run has 2^i rows, or as many as fit.

    Args:
        widths: What each row is padded to at least, widest first.
        max_tokens: No run of several rows has more padded tokens.
        few_sizes: Have 2^i rows in every run.
    """
    num_rows = len(widths)
    best, sizes = [0] * (num_rows + 1), [0] * num_rows  # best[i]: cost of the rows from i on
    for start in range(num_rows - 1, -1, -1):
        limit = max(1, min(num_rows - start, max_tokens // widths[start]))
        tried = [1 << i for i in range(limit.bit_length())] + ([] if few_sizes else [limit])
        costs = [size * widths[start] + run_tokens + best[start + size] for size in tried]
        best[start] = min(costs)
        sizes[start] = tried[costs.index(best[start])]
    runs, start = [], 0
    while start < num_rows:
        runs.append(slice(start, start + sizes[start]))
        start += sizes[start]
    return runs


def _shuffled(n: int, seed: int, epoch: int, purpose: int) -> RowNumbers:
    # Raw draws, since numpy keeps those stable for ever but not what Generator makes of them.
    bits = np.random.PCG64(np.random.SeedSequence([seed & (2**64 - 1), epoch, purpose]))
    return np.argsort(bits.random_raw(n), kind="stable").astype(np.int64)


def _by_length(lengths: Indices, rows: RowNumbers) -> RowNumbers:
    return rows[np.argsort(lengths[rows], kind="stable")]
