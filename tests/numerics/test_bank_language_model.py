"""What a bank of language models gives for a row is what its adapter alone gives, whatever the other rows are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bases import language_model
from support.families import families
from support.toy_language import choosing, save_base, writing
from support.trials import written_by
from support.word_pairs import WordPairs
from transformers import Gemma2Config, LlamaConfig, MistralConfig, PretrainedConfig, SmolLM3Config

import loraxs_search
from loraxs_search import AdapterBank
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.errors import UsageError
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.records.task import BaseModel, BaseModelRef, DataSource, Task, TaskModel
from loraxs_search.tasks.kinds import KINDS, Prompt

from .conftest import SMALL, WORDS, tokenizer

LANGUAGE_MODEL = TaskModel("AutoModelForCausalLM")
SIZES = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "eos_token_id": 3, "bos_token_id": 2}
BASES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "smollm3": lambda: SmolLM3Config(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=6),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=8, sliding_window=6),
}
PROMPTS = [" ".join(WORDS[(5 * i + 3 * j) % len(WORDS)] for j in range(2 + 3 * i % 11)) for i in range(12)]
NEW_TOKENS = 10
NEAR = 1e-4  # two tokens this close may change places by rounding


@pytest.fixture(autouse=True)
def _word_pairs(monkeypatch):
    monkeypatch.setitem(KINDS._entries, WordPairs.name, WordPairs)


@pytest.fixture(scope="module", autouse=True)
def _factors(tmp_path_factory):
    with use_factor_store(FactorStore(tmp_path_factory.mktemp("factors"))):
        yield


def word_pairs(name: str) -> Task:
    settings = {"ask": "ask", "answer": "answer"}
    return Task(
        name, WordPairs.name, DataSource(), "", "", "exact_match", "maximize", ("exact_match",), settings=settings
    )


def save_language_model(folder: Path, family: str) -> BaseModel:
    language_model(BASES[family]()).save_pretrained(folder)
    own = tokenizer()
    own.eos_token = "[SEP]"
    own.save_pretrained(folder)
    return locate(BaseModelRef(str(folder)))


class Adapters:
    """Adapters of one base, all without a head, in folders by name."""

    def __init__(self, folder: Path, family: str, make_adapter: Callable[..., Path]) -> None:
        self.base = save_language_model(folder / "base", family)
        self.tokenizer = load_tokenizer(self.base)
        names = tuple(module.name for module in linear_modules(self.base, LANGUAGE_MODEL))
        kinds: dict[str, dict[str, Any]] = {
            "all": {"rank": 4, "target_modules": names},
            "all-too": {"rank": 4, "target_modules": names, "scale": 2.0, "sigma": "output"},
            "first": {"rank": 8, "target_modules": names[: len(names) // 2], "scale": 0.5},
            "bottom": {"rank": 3, "target_modules": names[1::2], "basis": "bottom"},
        }
        self.folders = {
            name: make_adapter(folder / name, self.base, task=word_pairs(name), seed=seed, **kind)
            for seed, (name, kind) in enumerate(kinds.items())
        }
        self._models: dict[str | None, Any] = {}

    def model(self, name: str | None) -> Any:
        if name not in self._models:
            self._models[name] = (
                load_model(self.base, LANGUAGE_MODEL)
                if name is None
                else load_adapter_folder(self.folders[name], base=self.base)
            )
        return self._models[name]

    def bank(self) -> AdapterBank:
        bank = AdapterBank(self.base, task_model=LANGUAGE_MODEL)
        for name, folder in self.folders.items():
            bank.load(name, folder)
        return bank

    @torch.no_grad()
    def written_alone(self, name: str | None, prompt: str) -> tuple[list[int], float]:
        """Return the tokens that a plain loop without a cache writes, and its closest choice."""
        (ids,) = Prompt.of({"prompt": "{text}"}).ids([(prompt,)], self.tokenizer)
        tokens, margin = list(ids), float("inf")
        for _ in range(NEW_TOKENS):
            logits = self.model(name)(input_ids=torch.tensor([tokens])).logits[0, -1]
            best, second = logits.topk(2).values.tolist()
            tokens.append(int(logits.argmax()))
            margin = min(margin, best - second)
            if tokens[-1] == self.tokenizer.eos_token_id:
                break
        return tokens[len(ids) :], margin


@pytest.fixture(scope="module", params=families(BASES))
def adapters(request, tmp_path_factory, make_adapter):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS._entries, WordPairs.name, WordPairs)
        return Adapters(tmp_path_factory.mktemp(request.param), request.param, make_adapter)


def mixture(adapters: Adapters) -> list[str | None]:
    names = [*adapters.folders, None]
    return [names[(2 * row + row // 5) % len(names)] for row in range(len(PROMPTS))]


def test_the_next_tokens_logits_are_those_of_the_adapter_alone(adapters):
    names = mixture(adapters)
    encoded = adapters.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    inputs = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    for row, (name, logits) in enumerate(zip(names, adapters.bank().logits(names, inputs), strict=True)):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        with torch.no_grad():
            expected = adapters.model(name)(input_ids=ids[None]).logits[0, -1]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_each_row_is_written_as_its_adapter_alone_writes_it(adapters):
    names, exempt = mixture(adapters), 0
    texts = written_by(adapters.bank(), names, PROMPTS, NEW_TOKENS)
    for name, prompt, text in zip(names, PROMPTS, texts, strict=True):
        tokens, margin = adapters.written_alone(name, prompt)
        exempt += margin < NEAR
        assert margin < NEAR or text == adapters.tokenizer.decode(tokens, skip_special_tokens=True)
    assert exempt < len(PROMPTS) / 2
    assert len(set(texts)) > len(adapters.folders)  # they do not all write the same


def test_questions_are_answered_as_by_each_adapter_alone(adapters):
    """Their kind asks twice: the second time about what the first has answered."""
    names = [name for name in mixture(adapters) if name]
    answers = adapters.bank().predict(names, PROMPTS[: len(names)])
    for name, prompt, answer in zip(names, PROMPTS, answers, strict=False):
        assert [answer] == loraxs_search.predict(adapters.folders[name], prompt)
    assert len({answer.label for answer in answers}) > 2


def test_a_bank_is_of_one_sort(adapters, make_adapter, tmp_path):
    modules = ("model.layers.0.self_attn.q_proj",)
    headed = make_adapter(tmp_path / "headed", adapters.base, rank=2, target_modules=modules)
    bank = adapters.bank()
    with pytest.raises(UsageError, match="task-2, of kind sequence-classification"):
        bank.load("headed", headed)
    assert "headed" not in bank
    with pytest.raises(UsageError, match="all, of kind word-pairs"):
        AdapterBank.of(str(headed), str(adapters.folders["all"]))


def test_tasks_that_write_and_that_choose_share_a_bank(make_adapter, tmp_path):
    save_base(tmp_path / "base")
    base = locate(BaseModelRef(str(tmp_path / "base")))
    modules = tuple(module.name for module in linear_modules(base, LANGUAGE_MODEL))
    short = {"max_new_tokens": 3, "stop": ["w5"]}
    tasks = {
        "writes": writing(),
        "writes briefly": writing(prompt="{first} say {second}", generation=short),
        "draws": writing(generation={"max_new_tokens": 6, "stop": [], "temperature": 3.0, "seed": 1}),
        "chooses": choosing(),
        "chooses given": choosing(options="choices", prompt="{words} say"),
    }
    folders = {
        name: make_adapter(tmp_path / name, base, task=task, seed=seed, rank=4, target_modules=modules)
        for seed, (name, task) in enumerate(tasks.items())
    }
    rows: list[tuple[str, str | tuple[str, ...]]] = [
        ("writes", "w1 w2"),
        ("chooses", "w3 w4 w5 w6"),
        ("writes briefly", ("w7", "w8 w9")),
        ("draws", "w1 w2"),
        ("chooses given", ("w3", "w1 | w2 w4 w6 | w8 w9")),
        ("chooses", "w9"),
        ("writes", "w3 w8 w1 w9"),
    ]
    bank = AdapterBank(base, task_model=LANGUAGE_MODEL)
    for name, folder in folders.items():
        bank.load(name, folder)
    answers = bank.predict([name for name, _ in rows], [question for _, question in rows])
    for (name, question), answer in zip(rows, answers, strict=True):
        (alone,) = loraxs_search.predict(folders[name], [question] if isinstance(question, str) else list(question))
        assert (answer.text, answer.label) == (alone.text, alone.label)
        assert answer.score == (None if alone.score is None else pytest.approx(alone.score, rel=1e-5))
