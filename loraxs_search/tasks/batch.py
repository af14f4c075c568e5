"""Rows as tensors, and where batches of a task come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraxs_search.records.literals import Split
from loraxs_search.tasks.encoded import EncodedRows


@dataclass(frozen=True)
class Batch:
    """B rows as tensors, on one device.

    Args:
        inputs: What the model takes: `input_ids`, `attention_mask` (B, T) int64, `token_type_ids` where the tokenizer
            makes them. Padded to the longest row, on the tokenizer's side.
        counts: How much is read of each row, (B,) int64; M in all.
        reads: Row and column of each read, row after row, (M, 2) int64; None if a head gives one output a row.
        targets: What each read should give, (M,); empty where rows are only asked.
        num_tokens: Real tokens, padding not counted.
    """

    inputs: dict[str, Tensor]
    counts: Tensor
    reads: Tensor | None
    targets: Tensor
    num_tokens: int

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
        rows, encoded = np.asarray(indices, dtype=np.int64), self.encoded(source)
        reads, targets = encoded.reads(rows, self._side), encoded.targets
        return Batch(
            inputs={name: torch.from_numpy(v) for name, v in encoded.padded(rows, self._pad_id, self._side).items()},
            counts=torch.from_numpy(encoded.counts(rows)),
            reads=None if reads is None else torch.from_numpy(reads),
            targets=torch.empty(0) if targets is None else torch.from_numpy(targets.flat(rows)),
            num_tokens=int(encoded.lengths[rows].sum()),
        )
