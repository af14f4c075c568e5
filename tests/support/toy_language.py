"""A language that a tiny model learns to write in a hundred steps: two words are said the other way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from loraxs_search.base_model.locate import locate
from loraxs_search.records.task import BaseModel, BaseModelRef, DataSource, Task
from support.bases import SMALL, word_tokenizer

WORDS = [f"w{i}" for i in range(20)]
_TOKENS = ["[PAD]", "[UNK]", "[END]", "say", *WORDS]
_CHAT = "{% for m in messages %}{{ m.content }}{{ '[TURN]' if m.role == 'assistant' else ' ' }}{% endfor %}"
_SIZES = {**SMALL, "vocab_size": len(_TOKENS), "intermediate_size": 64, "max_position_embeddings": 64}
# At full rank, an adapter can become any weight: there are as many heads of keys and values.
CONFIG = LlamaConfig(**_SIZES, num_key_value_heads=4, bos_token_id=None, eos_token_id=2, pad_token_id=0)


def writing(name: str = "turned-words", source: DataSource | None = None, **settings: Any) -> Task:
    """Return a task of this language, in which the words are written."""
    generation = {"max_new_tokens": 6, "stop": []}
    own = {"prompt": "say {words}", "answer": " {turned}", "generation": generation, **settings}
    source = source or DataSource()
    scored = {"text": "", "label": "", "metric": "exact_match", "direction": "maximize", "metrics": ("exact_match",)}
    return Task(name, "text-generation", source, **scored, max_length=16, settings=own)


def choosing(name: str = "chosen-words", source: DataSource | None = None, **settings: Any) -> Task:
    """Return a task in which one of three words is chosen."""
    own = {"prompt": "say {words}", "options": ["w1", "w2 w3", "w4"], "label": "label", "normalize": "none", **settings}
    source = source or DataSource()
    return Task(
        name, "multiple-choice", source, "", "", "accuracy", "maximize", ("accuracy",), max_length=16, settings=own
    )


def save_base(folder: Path, *, chat: bool = False) -> BaseModel:
    """Write a model of random weights and a tokenizer of whole words, and return it as `locate` finds it.

    Args:
        chat: Give the tokenizer a chat template, which ends a turn by [TURN] and not by the end token.
    """
    tokens = [*_TOKENS, "[TURN]"] if chat else _TOKENS
    special: dict[str, Any] = {"eos_token": "[END]"}
    if chat:
        special |= {"extra_special_tokens": ["[TURN]"], "chat_template": _CHAT}
    tokenizer = word_tokenizer(tokens, 64, **special)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(**CONFIG.to_dict() | {"vocab_size": len(tokens)})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return locate(BaseModelRef(str(folder)))


def save_rows(folder: Path) -> None:
    """Write the three splits as JSON lines, with columns `words` and `turned`."""
    random = np.random.default_rng(0)
    for split, size in {"train": 200, "validation": 40, "test": 40}.items():
        pairs = [[WORDS[i] for i in random.integers(len(WORDS), size=2)] for _ in range(size)]
        rows = [{"words": " ".join(pair), "turned": " ".join(pair[::-1])} for pair in pairs]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
