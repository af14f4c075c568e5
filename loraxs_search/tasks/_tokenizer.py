"""The identity of a tokenizer, as far as it decides a task's tokens."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import TaskDataError
from loraxs_search.records import Task, to_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VERSION = "5"  # part of the cache key: raise when the same inputs give other tokens, or other counts of them
_UNLIMITED = 10**9  # tokenizers without a limit of their own say 1e30


def cache_key(task: Task, identity: str, data_fingerprint: str, split: str) -> str:
    """Return what decides the tokens of a split, as a file name; `identity` is the tokenizer's."""
    parts = [_VERSION, data_fingerprint, split, identity, str(task.max_length)]
    if task.settings:
        parts += [task.kind, to_json(task.settings)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of what a tokenizer does: vocabulary, rules, special tokens, chat template; not of its place."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()}
    else:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)  # left behind by the last call
        state.pop("padding", None)
    state["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    state["class"] = type(tokenizer).__name__
    state["inputs"] = sorted(tokenizer.model_input_names)
    state["chat_template"] = tokenizer.chat_template
    state["truncation_side"] = tokenizer.truncation_side
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def check_max_length(task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a `max_length` that leaves no space for text, or that the base model cannot take.

    Raises:
        TaskDataError: it is outside the range; the message has the range.
    """
    low = tokenizer.num_special_tokens_to_add(pair=task.text_pair is not None) + 1
    high = tokenizer.model_max_length
    if not low <= task.max_length <= high:
        allowed = f"{low}..{high}" if high < _UNLIMITED else f"at least {low}"
        raise TaskDataError(
            f"Task {task.name}: `max_length` must be {allowed} with this base model, but got"
            f" max_length={task.max_length}.",
            hint="change `max_length`, or choose another base model",
        )
