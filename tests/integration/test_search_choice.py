"""A search of a language model on multiple choice: from a file to a decision, and every verb that meets such a task."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.bases import LLAMA
from support.in_process import InProcess
from support.shell import Shell
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from loraxs_search.records.trial import TrialState
from loraxs_search.search.driver.launch import launch
from loraxs_search.studies.folder import StudyFolder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]

SPACE = """
task:
  name: next-word
  kind: multiple-choice
  data: {data_files: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  prompt: "{words} then"
  options: choices
  label: answer
  normalize: tokens
  metrics: [accuracy, loss, token_accuracy]
  max_length: 16
base_model: ./base
parameters:
  rank: {choice: [4, 8]}
  target_modules: all-linear
  learning_rate: {log_uniform: [1.0e-2, 1.0e-1]}
  batch_size: 8
search: {trials: 3, max_steps: 60, report_every: 20, precision: float32}
promotion: {candidates: 2, seeds: 1}
"""


def save_base(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "then", *(f"w{i}" for i in range(LLAMA.vocab_size - 3))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_input_names": ["input_ids", "attention_mask"]}
    PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=32, **special).save_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LLAMA)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)


def save_rows(folder: Path) -> None:
    """The right option is one of two words, whatever the prompt: soon learnt."""
    draw = random.Random(0)
    for split, size in {"train": 120, "validation": 60, "test": 60}.items():
        lines = []
        for i in range(size):
            words = [f"w{draw.randrange(30)}" for _ in range(4 + i % 5)]
            choices = [words[0], f"w{30 + i % 2}", f"{words[1]} w2"]
            draw.shuffle(choices)
            answer = "ABC"[choices.index(f"w{30 + i % 2}")]
            lines.append(json.dumps({"words": " ".join(words), "choices": choices, "answer": answer}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))


@pytest.fixture
def shell(tmp_path: Path, search_home: Path, in_search_home: Path) -> Shell:
    save_base(tmp_path / "base")
    save_rows(tmp_path)
    (tmp_path / "choice.yaml").write_text(SPACE)
    return InProcess(search_home, tmp_path)


@pytest.mark.long(part="search")
def test_a_language_model_is_searched_promoted_and_asked(
    ray_here: None, shell: Shell, agree: Callable[..., object]
) -> None:
    checked = shell.ok("check", "choice.yaml", "--data")
    assert "next-word: multiple-choice; maximize accuracy" in checked
    launch(str(shell.folder / "choice.yaml"), name="choice")
    agree("choice", 3)
    folder = StudyFolder.open("choice")
    complete = [r for r in folder.journal().records.values() if r.state is TrialState.COMPLETE]
    assert complete
    report = complete[0].reports[-1]
    assert report.size.head_parameters == 0 < report.size.r_parameters
    assert {"accuracy", "loss", "token_accuracy"} <= set(report.metrics)
    constant, *alone = folder.baselines() or ()
    assert constant.answer in (0, 1, 2)
    assert [baseline.name for baseline in alone] == ["zero-shot", "4-shot"]
    assert "promoted" in shell.ok("promote", "choice").lower()
    for verb in ("ls", "status choice", "show next-word", "history next-word"):
        assert "accuracy" in shell.ok(*verb.split()), verb
    questions = ("w1 w2 w5 w8", "w1 | w30 | w2 w2", "w9 w3 w4 w12 w6", "w9|w3 w2|w31")
    answers = json.loads(shell.ok("predict", "next-word", *questions, "--json"))
    assert [answer["label"] for answer in answers] == ["w30", "w31"]
    assert all(1 / 3 < answer["score"] <= 1 for answer in answers)
    card = (Path(shell.ok("pull", "next-word").strip()) / "README.md").read_text()
    assert "transformers.AutoModelForCausalLM.from_pretrained" in card
    assert "accuracy" in card
