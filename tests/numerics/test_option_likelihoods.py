"""The likelihood of each option is that of its tokens in a whole row, one row at a time, by a plain computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.bases import SMALL
from support.characters import characters
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from loraxs_search.base_model.load import load_model
from loraxs_search.records.base import BaseModel
from loraxs_search.records.task import DataSource, Task
from loraxs_search.tasks.kinds.multiple_choice import Choices
from loraxs_search.tasks.prepared import PreparedTask, load_data, prepare
from loraxs_search.trial.evaluate import score_rows

CPU = torch.device("cpu")
WORDS = ["red", "green", "a long grey", "blue", "no colour at all"]


def rows(number: int) -> list[dict[str, Any]]:
    """Two to five options for each prompt; of some prompts, the beginning is cut."""
    made = []
    for i in range(number):
        options = [WORDS[(i + j) % len(WORDS)] for j in range(2 + i % 4)]
        made.append({"q": "Which " * (i % 7) + f"number {i}", "options": options, "answer": (3 * i) % len(options)})
    return made


@pytest.fixture
def data(tmp_path):
    files = {}
    for split, size in {"train": 40, "validation": 17, "test": 14}.items():
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(map(json.dumps, rows(size))))
    settings = {"prompt": "{q}:", "options": "options", "label": "answer", "normalize": "tokens"}
    metrics = ("accuracy", "loss", "token_accuracy")
    task = Task(
        "colours",
        "multiple-choice",
        DataSource(data_files=files),
        "",
        "",
        "accuracy",
        "maximize",
        metrics,
        max_length=48,
        settings=settings,
    )
    return prepare(task, characters(begins=True))


@pytest.fixture
def base(tmp_path, data):
    torch.manual_seed(0)
    size = {**SMALL, "vocab_size": len(data.tokenizer), "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**size, pad_token_id=0, tie_word_embeddings=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(tmp_path / "base")
    data.tokenizer.save_pretrained(tmp_path / "base")
    return BaseModel("tiny", str(tmp_path / "base"), "0" * 64)


@torch.inference_mode()
def plain(model: torch.nn.Module, data: PreparedTask, split: str) -> tuple[list[Tensor], list[int]]:
    """Return the log-likelihood of each option of each row, (options,), and which is likeliest a token."""
    task, tokenizer, likelihoods, answers = data.task, data.tokenizer, [], []
    split_rows = load_data(task)[split]  # type: ignore[index]
    for text, options in zip(split_rows.texts, split_rows.extras["options"], strict=True):
        ends = [tokenizer(option, add_special_tokens=False)["input_ids"] for option in options]
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = [tokenizer.bos_token_id, *prompt[-(task.max_length - 1 - max(map(len, ends))) :]]
        sums = []
        for end in ends:
            ids = torch.tensor([prompt + end])
            log_p = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            sums.append(log_p[torch.arange(len(end)), torch.tensor(end)].sum())
        likelihoods.append(torch.stack(sums))
        answers.append(int(np.argmax([float(s) / len(end) for s, end in zip(sums, ends, strict=True)])))
    return likelihoods, answers


@pytest.fixture
def seen(monkeypatch):
    """The losses of all options, whenever a split is scored."""
    scores, seen = Choices.scores, []

    def recorded(self: Choices, losses: npt.NDArray[np.float32], normalize: str) -> list[npt.NDArray[np.float64]]:
        seen.append(torch.from_numpy(losses))
        return scores(self, losses, normalize)

    monkeypatch.setattr(Choices, "scores", recorded)
    return seen


def check(likelihoods: list[Tensor], losses: Tensor) -> None:
    torch.testing.assert_close(-losses, torch.cat(likelihoods).float(), rtol=1e-5, atol=1e-5)


def test_options_of_the_base_are_as_likely_as_in_whole_rows(data, base, seen):
    model = load_model(base, data.kind.model)
    assert data.report.cut["test"] > 0
    likelihoods, answers = plain(model, data, "test")
    scores = score_rows(model, data, "test", np.arange(14))
    check(likelihoods, seen[0])
    assert scores.predictions.tolist() == answers
    right = [own[label] for own, label in zip(likelihoods, data.labels("test"), strict=True)]
    np.testing.assert_allclose(-scores.losses, torch.stack(right).float(), rtol=1e-5)
