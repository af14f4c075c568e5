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

from loraxs_search.home import ensure_dir, home
from loraxs_search.records import DataReport, Split, Task
from loraxs_search.tasks._report import cached_report
from loraxs_search.tasks._rows import Rows, fingerprint, fixed_subset, read_rows
from loraxs_search.tasks._texts import check_question
from loraxs_search.tasks._tokenizer import cache_key, check_max_length, tokenizer_identity
from loraxs_search.tasks._tokens import TokenStore, token_store, tokenize
from loraxs_search.tasks.kinds import TaskHead, head_for


@dataclass(frozen=True)
class Batch:
    """Rows as tensors on CPU.

    Args:
        inputs: What the model takes: `input_ids`, `attention_mask` (B, T) int64, `token_type_ids` where the tokenizer
            makes them. Padded to the longest row, on the tokenizer's side.
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
        report: What the splits share and repeat.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # one place makes it
        self,
        task: Task,
        head: TaskHead,
        data_fingerprint: str,
        test_fingerprint: str,
        tokens: Mapping[Split, TokenStore],
        labels: Mapping[Split, npt.NDArray[Any]],
        pad_id: int,
        padding_side: str = "right",
        report: DataReport | None = None,
    ) -> None:
        self.task = task
        self.head = head
        self.data_fingerprint = data_fingerprint
        self.report = report or DataReport()
        self.test_fingerprint = test_fingerprint
        self._tokens = dict(tokens)
        self._labels = dict(labels)
        self._pad_id, self._padding_side = pad_id, padding_side

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
        inputs = _tensors(store.padded(rows, self._pad_id, self._padding_side))
        labels = torch.from_numpy(self._labels[split][rows]).to(self.head.label_dtype)
        return Batch(inputs=inputs, labels=labels, num_tokens=int(store.lengths[rows].sum()))


@dataclass(frozen=True)
class TaskData:
    """A task's rows, checked and carved, before any tokenizer has seen them.

    Args:
        rows: Of each split, all three.
        fingerprint: sha256 over the texts and labels of all splits.
        report: What the splits share and repeat.
    """

    rows: Mapping[Split, Rows]
    fingerprint: str
    report: DataReport


def load_data(task: Task, cache_dir: Path | None = None) -> TaskData:
    """Read a task's rows, check them and carve missing splits; no base model is needed.

    Missing validation and test splits are carved from train, a tenth each, the same rows always; a test split whose
    labels are all hidden (-1) counts as missing. The rows of a file are cached by its content.

    Args:
        cache_dir: Where rows are cached; None means home()/"datasets".
    Raises:
        TaskDataError: the data do not fit the declaration; all their faults are told.
        HomeError: the cache cannot be written.
    """
    cache = _cache(cache_dir)
    rows = read_rows(task, head_for(task), cache)
    digest = fingerprint(rows)
    return TaskData(rows, digest, cached_report(rows, digest, cache))


def prepare(task: Task, tokenizer: PreTrainedTokenizerBase, *, cache_dir: Path | None = None) -> PreparedTask:
    """Read a task's rows, check them, carve missing splits, and tokenise.

    See `load_data` for the rows. Tokens are cached per (data fingerprint, tokenizer, `max_length`).

    Args:
        cache_dir: Where rows and tokens are cached; None means home()/"datasets".
    Raises:
        TaskDataError: the data do not fit the declaration.
        HomeError: the cache cannot be written.
    """
    head = head_for(task)
    check_max_length(task, tokenizer)
    cache, data, identity = _cache(cache_dir), load_data(task, cache_dir), tokenizer_identity(tokenizer)
    tokens = {
        name: tokenize(task, rows, tokenizer, key=cache_key(task, identity, data.fingerprint, name), cache_dir=cache)
        for name, rows in data.rows.items()
    }
    labels = {name: rows.labels for name, rows in data.rows.items()}
    scored = fixed_subset(len(data.rows["validation"]), task.validation_rows)
    tokens["validation"], labels["validation"] = tokens["validation"].take(scored), labels["validation"][scored]
    for array in labels.values():
        array.flags.writeable = False
    return PreparedTask(
        task,
        head,
        data.fingerprint,
        fingerprint(dict(data.rows), ("test",)),
        tokens,
        labels,
        int(tokenizer.pad_token_id),
        tokenizer.padding_side,
        data.report,
    )


def encode(
    task: Task, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Return model inputs (B, T) for texts that are no part of the data, tokenised as in training.

    Raises:
        TaskDataError: there is no row, one has nothing to read or gives no token, or the task takes another number of
            texts per row.
    """
    check_question(task, texts, pairs)
    store = token_store(task, tokenizer, texts, pairs)
    return _tensors(store.padded(np.arange(len(texts)), int(tokenizer.pad_token_id), tokenizer.padding_side))


def _cache(cache_dir: Path | None) -> Path:
    return ensure_dir(cache_dir if cache_dir is not None else home() / "datasets")


def _tensors(arrays: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
