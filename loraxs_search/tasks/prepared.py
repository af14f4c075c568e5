"""A task ready to train on: rows read, checked, carved and tokenised; batches on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraxs_search.errors import TaskDataError
from loraxs_search.home import ensure_dir, home
from loraxs_search.records import Split, Task
from loraxs_search.tasks._rows import SPLITS, fingerprint, fixed_subset, read_rows
from loraxs_search.tasks._source import no_bars, read_splits
from loraxs_search.tasks._tokenizer import cache_key, check_max_length, tokenizer_identity
from loraxs_search.tasks._tokens import TokenStore, token_store, tokenize
from loraxs_search.tasks.kinds import TaskHead, head_for


@dataclass(frozen=True)
class Batch:
    """Rows as tensors on CPU.

    Args:
        inputs: What the model takes: `input_ids`, `attention_mask` (B, T) int64, `token_type_ids` where the tokenizer
            makes them. Padded on the right to the longest row.
        labels: (B,) of the kind's `label_dtype`.
        num_tokens: Real tokens, padding not counted.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    num_tokens: int


class PreparedTask:
    """The rows of a task as tokens. Read-only: safe to share between threads.

    Args:
        task: As declared.
        head: What the task's kind means: loss, predictions, scores.
        data_fingerprint: sha256 over the texts and labels of all splits; `validation_rows` plays no part in it.
        test_fingerprint: sha256 over those of the test split alone.
    """

    def __init__(
        self,
        task: Task,
        head: TaskHead,
        data_fingerprint: str,
        test_fingerprint: str,
        tokens: Mapping[Split, TokenStore],
        labels: Mapping[Split, npt.NDArray[Any]],
        pad_id: int,
    ) -> None:
        self.task = task
        self.head = head
        self.data_fingerprint = data_fingerprint
        self.test_fingerprint = test_fingerprint
        self._tokens = dict(tokens)
        self._labels = dict(labels)
        self._pad_id = pad_id

    def num_rows(self, split: Split) -> int:
        """Return the number of rows; for validation, of those that are scored."""
        return len(self._labels[split])

    def lengths(self, split: Split) -> npt.NDArray[np.int32]:
        """Return each row's number of tokens, (N,), read-only."""
        return self._tokens[split].lengths

    def labels(self, split: Split) -> npt.NDArray[Any]:
        """Return the labels, (N,), int64 ids or float32 numbers, read-only."""
        return self._labels[split]

    def collate(self, split: Split, indices: npt.NDArray[np.integer] | Sequence[int]) -> Batch:
        """Return the rows of `indices`, in that order, as one batch."""
        rows = np.asarray(indices, dtype=np.int64)
        store = self._tokens[split]
        inputs = _tensors(store.padded(rows, self._pad_id))
        labels = torch.from_numpy(self._labels[split][rows]).to(self.head.label_dtype)
        return Batch(inputs=inputs, labels=labels, num_tokens=int(store.lengths[rows].sum()))


def prepare(task: Task, tokenizer: PreTrainedTokenizerBase, *, cache_dir: Path | None = None) -> PreparedTask:
    """Read a task's rows, check them, carve missing splits, and tokenise.

    Missing validation and test splits are carved from train, a tenth each, the same rows always; a test split whose
    labels are all hidden (-1) counts as missing. Tokens are cached per (data fingerprint, tokenizer, `max_length`).

    Args:
        cache_dir: Where `datasets` keeps its files; None means home()/"datasets".
    Raises:
        TaskDataError: the data do not fit the declaration.
        HomeError: the cache cannot be written.
    """
    head = head_for(task)
    check_max_length(task, tokenizer)
    cache = ensure_dir(cache_dir if cache_dir is not None else home() / "datasets")
    with no_bars():
        rows = read_rows(task, head, read_splits(task, cache))
        digest, identity = fingerprint(rows), tokenizer_identity(tokenizer)
        tokens = {
            name: tokenize(task, rows[name], tokenizer, key=cache_key(task, identity, digest, name), cache_dir=cache)
            for name in SPLITS
        }
    labels = {name: rows[name].labels for name in SPLITS}
    scored = fixed_subset(len(rows["validation"]), task.validation_rows)
    tokens["validation"], labels["validation"] = tokens["validation"].take(scored), labels["validation"][scored]
    for array in labels.values():
        array.flags.writeable = False
    return PreparedTask(task, head, digest, fingerprint(rows, ("test",)), tokens, labels, int(tokenizer.pad_token_id))


def encode(
    task: Task, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Return model inputs (B, T) for texts that are no part of the data, tokenised as in training.

    Raises:
        TaskDataError: there is no text, a text gives no token, or the task takes another number of texts per row.
    """
    if (pairs is not None) != (task.text_pair is not None) or (pairs is not None and len(pairs) != len(texts)):
        raise TaskDataError(f"Task {task.name} must be given {'two texts' if task.text_pair else 'one text'} per row.")
    if not texts:
        raise TaskDataError(f"Task {task.name} must be given at least one row.")
    store = token_store(task, tokenizer, texts, pairs)
    return _tensors(store.padded(np.arange(len(texts)), int(tokenizer.pad_token_id)))


def _tensors(arrays: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
