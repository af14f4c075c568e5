"""Small decoders of many builds without a head, and tasks of made-up tokens that they learn to continue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    FalconH1Config,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from loraxs_search.base_model.sharing import probe_sharing
from loraxs_search.records.task import BaseModel, DataSource, Task
from loraxs_search.records.trial import TrialSpec
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds.text_generation import TextGeneration
from loraxs_search.tasks.prepared import PreparedTask
from loraxs_search.trial.snapshot import Snapshot
from support.bases import SMALL, language_model, word_tokenizer
from support.trials import TrialBase, run_alone

VOCABULARY = 64
WINDOW = 6  # shorter than most rows
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL: dict[str, Any] = {**SMALL, **_IDS, "vocab_size": VOCABULARY, "num_key_value_heads": 2}
_SMALL |= {"max_position_embeddings": 64, "tie_word_embeddings": True}
DECODERS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SMALL),
    "qwen2": lambda: Qwen2Config(**_SMALL | {"tie_word_embeddings": False}),
    "qwen3": lambda: Qwen3Config(**_SMALL, head_dim=16),
    "mistral": lambda: MistralConfig(**_SMALL, sliding_window=WINDOW),
    "gemma": lambda: GemmaConfig(**_SMALL | {"num_key_value_heads": 1}, head_dim=16),
    "gemma2": lambda: Gemma2Config(**_SMALL, head_dim=16, sliding_window=WINDOW),  # caps scores and logits
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, eos_token_id=2
    ),
    # recurrent throughout; convolutions beside attention; both in one layer
    "mamba": lambda: MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, pad_token_id=0, eos_token_id=2
    ),
    "lfm2": lambda: Lfm2Config(**_SMALL, layer_types=["conv", "full_attention"]),
    "falcon_h1": lambda: FalconH1Config(
        **_SMALL, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=16, mamba_d_ssm=64
    ),
}


def tokenizer() -> PreTrainedTokenizerBase:
    special = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    words = [f"w{i}" for i in range(VOCABULARY - len(special))]
    return word_tokenizer([*special, *words], 64, bos_token="[BOS]", eos_token="[EOS]")


def made_up_rows(num_rows: int, seed: int, longest: int = 24) -> EncodedRows:
    """Return rows of up to `longest` tokens: a prompt of one token at least, and an answer that follows from it."""
    random = np.random.default_rng(seed)
    ids, positions, targets = [], [], []
    for _ in range(num_rows):
        prompt = random.integers(4, VOCABULARY, random.integers(1, longest - 6))
        answer = (prompt[-1] + np.arange(random.integers(1, 7)) * (seed + 3)) % (VOCABULARY - 4) + 4
        ids.append(np.append(prompt, answer[:-1]))
        positions.append(np.arange(len(prompt) - 1, len(ids[-1])))
        targets.append(answer)
    return EncodedRows(
        Ragged.of(ids, np.int32), positions=Ragged.of(positions, np.int32), targets=Ragged.of(targets, np.int64)
    )


def continuations(name: str, seed: int, longest: int = 24) -> PreparedTask:
    """Return a task of made-up rows."""
    scored = {"text": "", "label": "", "metric": "loss", "direction": "minimize", "metrics": ("loss", "token_accuracy")}
    settings = {"prompt": "{prompt}", "answer": "{answer}", "generation": {"max_new_tokens": 6, "stop": []}}
    task = Task(name, "text-generation", DataSource(hub="toy"), **scored, max_length=longest, settings=settings)
    sizes = {"train": 90, "validation": 33, "test": 20}
    rows = {split: made_up_rows(size, seed + i, longest) for i, (split, size) in enumerate(sizes.items())}
    labels = {split: np.zeros(size, np.int64) for split, size in sizes.items()}
    return PreparedTask(TextGeneration(task), tokenizer(), name, name, rows, labels)  # type: ignore[arg-type]


def save_decoder(folder: Path, family: str) -> BaseModel:
    """Save a decoder of random weights, large enough that nothing of it does next to nothing."""
    language_model(DECODERS[family]()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return BaseModel(id=family, path=str(folder), weight_digest="0" * 64)


class DecoderWorld(TrialBase):
    """One decoder with several tasks."""

    def __init__(self, folder: Path, family: str, dtype: torch.dtype | None = None) -> None:
        tasks = [continuations("short", 1, 12), continuations("long", 10, 30)]
        self._load(save_decoder(folder / "base", family), tasks, dtype)

    @classmethod
    def of(cls, base: BaseModel, tasks: Sequence[PreparedTask]) -> DecoderWorld:
        """Return one of a base that is there."""
        world = cls.__new__(cls)
        world._load(base, tasks, None)
        return world

    def _load(self, base: BaseModel, tasks: Sequence[PreparedTask], dtype: torch.dtype | None) -> None:
        self.base, self.tasks = base, list(tasks)
        self.load(self.tasks[0].kind.model, dtype)
        unpackable = probe_sharing(self.model, self.names).unpackable  # Mamba turns the input of its `dt_proj`
        self.names = [name for name in self.names if name not in unpackable]

    def mixed_trials(self, **changes: Any) -> list[tuple[TrialSpec, PreparedTask]]:
        """Trials of mixed ranks, sides, modules, batches and tasks."""
        short, long = self.tasks
        top = tuple(name for name in self.names if ".1." in name)
        mixed: list[tuple[dict[str, Any], PreparedTask]] = [
            ({}, long),
            ({"rank": 8, "scale": 2.0, "learning_rate": 5e-3, "batch_size": 5, "max_grad_norm": 0.0}, short),
            ({"rank": 2, "sigma": "sqrt", "lr_schedule": "cosine", "target_modules": top}, long),
            ({"rank": 6, "basis": "bottom", "batch_size": 16, "target_modules": tuple(self.names[1::2])}, short),
            ({"rank": 3, "target_modules": tuple(self.names[::3])}, short),
        ]
        return [(self.spec(str(i), **(own | changes)), data) for i, (own, data) in enumerate(mixed, 1)]

    def lone(self, spec: TrialSpec, data: PreparedTask, until: int) -> Snapshot:
        """Run a trial by itself, the reference, and return its state after a report."""
        return run_alone(spec, data, self.model, self.factors, until)
