"""Texts of several tasks as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraxs_search.base_model import widened
from loraxs_search.errors import TaskDataError
from loraxs_search.records import Task
from loraxs_search.tasks import encode

Text = str | tuple[str, str]


def shown(text: Text) -> str:
    """Return a row as people read it."""
    return text if isinstance(text, str) else " | ".join(text)


def tokenized(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> dict[str, Tensor]:
    """Return model inputs (rows, tokens), each row tokenised as its task does, padded to the longest.

    Raises:
        TaskDataError: a row has another number of texts than its task takes.
    """
    rows_of: dict[int, list[int]] = {}
    for row, task in enumerate(tasks):
        rows_of.setdefault(id(task), []).append(row)
    parts = [_encoded(tasks[rows[0]], tokenizer, [texts[row] for row in rows]) for rows in rows_of.values()]
    order = torch.tensor([row for rows in rows_of.values() for row in rows]).argsort()
    width = max(part["input_ids"].shape[1] for part in parts)
    fill, side = {"input_ids": int(tokenizer.pad_token_id)}, tokenizer.padding_side
    return {
        name: torch.cat([widened(part[name], width, fill.get(name, 0), side) for part in parts])[order]
        for name in parts[0]
    }


def _encoded(task: Task, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> dict[str, Tensor]:
    takes = str if task.text_pair is None else tuple
    if wrong := [text for text in texts if not isinstance(text, takes)]:
        number = "one text" if task.text_pair is None else "a pair of texts"
        raise TaskDataError(f"Task {task.name} must be given {number} a row, but got {wrong[0]!r}.")
    if task.text_pair is None:
        return encode(task, tokenizer, [str(text) for text in texts])
    return encode(task, tokenizer, [text[0] for text in texts], [text[1] for text in texts])
