"""What a bank gives for a row is what its adapter alone gives, whatever the other rows are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.bases import families
from support.toy_language import choosing, save_base, writing
from support.trials import save_decoder, written_by
from support.word_pairs import WordPairs
from torch import Tensor

import loraxs_search
from loraxs_search import AdapterBank
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.errors import UsageError
from loraxs_search.factors.store import FactorStore
from loraxs_search.manifest import verify
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.methods.loraxs import LoraXSConfig, use_factor_store
from loraxs_search.records.task import BaseModelRef, DataSource, Task, TaskModel
from loraxs_search.tasks.kinds import KINDS, Prompt

from . import conftest
from .conftest import CLASSIFIER, LANGUAGE_MODEL, WORDS, padded

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PROMPTS = [" ".join(WORDS[(5 * i + 3 * j) % len(WORDS)] for j in range(2 + 3 * i % 11)) for i in range(12)]
NEW_TOKENS = 10
NEAR = 1e-4  # two tokens this close may change places by rounding


@pytest.fixture(scope="module", autouse=True)
def _known(tmp_path_factory):
    with use_factor_store(FactorStore(tmp_path_factory.mktemp("factors"))), pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS._entries, WordPairs.name, WordPairs)
        yield


class Adapters:
    """Adapters of one base, in folders by name; `kinds` makes them of the names of its layers."""

    def __init__(
        self, base: Path, make_adapter: Callable[..., Path], model: TaskModel, kinds: Callable[[Any], dict[str, Any]]
    ) -> None:
        self.base, self.task_model = locate(BaseModelRef(str(base))), model
        modules = tuple(module.name for module in linear_modules(self.base, model))
        self.folders = {
            name: make_adapter(base.parent / name, self.base, seed=seed, **{"rank": 4} | own)
            for seed, (name, own) in enumerate(kinds(modules).items())
        }
        self.bank = AdapterBank(self.base, task_model=model)
        for name, folder in self.folders.items():
            self.bank.load(name, folder)
        self._models: dict[str | None, Any] = {}

    @torch.no_grad()
    def alone(self, name: str | None, ids: Sequence[int]) -> Tensor:
        """Return the logits of one row without padding; the last token's where there is no head."""
        if name not in self._models:
            load = load_adapter_folder(self.folders[name], base=self.base) if name else None
            self._models[name] = load or load_model(self.base, self.task_model)
        logits = self._models[name](input_ids=torch.tensor([ids])).logits[0]
        return logits if logits.dim() == 1 else logits[-1]

    def check(self, names: Sequence[str | None], inputs: dict[str, Tensor], **close: float) -> None:
        """Assert that each row of a batch is what its adapter gives alone."""
        for row, (name, logits) in enumerate(zip(names, self.bank.logits(names, inputs), strict=True)):
            ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, self.alone(name, ids).float(), **close)


# ---- classifiers -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=families(["bert", "roberta", "distilbert", "gpt2", "llama"]))
def adapters(request, tmp_path_factory, make_adapter):
    folder = tmp_path_factory.mktemp(request.param) / "base"
    conftest.save_base(folder, request.param)

    def unlike(names: Any) -> dict[str, Any]:
        half = len(names) // 2
        return {
            "all": {},
            "all-too": {"scale": 2.0, "sigma": "output"},
            "first": {"rank": 8, "target_modules": names[:half], "scale": 0.5, "sigma": "sqrt"},
            "second": {"rank": 3, "target_modules": names[half:], "sigma": "none", "num_labels": 5},
            "bottom": {"target_modules": names[::3], "basis": "bottom", "num_labels": 3},
            "number": {"rank": 2, "target_modules": names[1::2], "basis": "bottom", "num_labels": 1},
            "buckets": {"factor_rank": 16},
            # The one whose head has a layer that may be left out.
            **({"output-4": {"head": "output", "num_labels": 4}} if request.param == "roberta" else {}),
        }

    return Adapters(folder, make_adapter, CLASSIFIER, unlike)


def test_an_adapter_that_is_added_is_the_one_that_its_file_has(adapters):
    folder = adapters.folders["all"]
    config, tensors = LoraXSConfig.from_pretrained(str(folder)), load_file(folder / "adapter_model.safetensors")
    adapters.bank.add("added", config, verify(folder).task, tensors)
    own, added = adapters.bank.logits(["all", "added"], {"input_ids": torch.tensor([[5, 6, 7]] * 2)})
    adapters.bank.evict("added")
    torch.testing.assert_close(own, added, **CLOSE)


def test_a_loader_that_does_not_know_the_file_has_no_answer(adapters):
    """That of transformers does not ask PEFT how an adapter's file is read."""
    model = load_model(adapters.base, adapters.task_model)
    model.load_adapter(str(adapters.folders["all"]))
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.isnan().all()


def test_a_row_is_what_its_adapter_gives_alone(adapters):
    """Each adapter with all others and bare rows; in runs; in turn; one adapter for all; none."""
    names = list(adapters.folders)
    firsts = torch.stack([adapters.alone(name, [5, 6, 7, 8])[:1] for name in names])
    assert torch.pdist(firsts).min() > 1e-3, "they are far from equal"
    for mixed in (
        [*names, None, *reversed(names), None],
        [name for name in [*names, None] for _ in range(3)],
        [names[0], None, names[0], names[0], names[2], names[0]],
        [names[-1]] * 6,
        [None] * 4,
    ):
        adapters.check(mixed, padded(len(mixed)), **CLOSE)


def test_a_base_in_bfloat16_is_served_in_bfloat16(tmp_path, make_adapter):
    base = conftest.save_base(tmp_path / "base", "roberta")
    load_model(base, CLASSIFIER).bfloat16().save_pretrained(tmp_path / "base")
    adapters = Adapters(tmp_path / "base", make_adapter, CLASSIFIER, lambda _: {"a": {}, "b": {}})
    adapters.check(["a", "b", None, "b"], padded(4), atol=3e-2, rtol=3e-2)


# ---- language models -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=families(["llama", "mistral", "gemma2"]))
def writers(request, tmp_path_factory, make_adapter):
    """Adapters without a head."""
    folder = tmp_path_factory.mktemp(request.param) / "base"
    save_decoder(folder, request.param)

    def unlike(names: Any) -> dict[str, Any]:
        kinds: dict[str, dict[str, Any]] = {
            "all": {},
            "all-too": {"scale": 2.0, "sigma": "output"},
            "first": {"rank": 8, "target_modules": names[: len(names) // 2], "scale": 0.5},
            "bottom": {"rank": 3, "target_modules": names[1::2], "basis": "bottom"},
        }
        about = ("", "", "exact_match", "maximize", ("exact_match",))
        settings = {"ask": "ask", "answer": "answer"}
        return {
            name: own | {"task": Task(name, WordPairs.name, DataSource(), *about, settings=settings)}
            for name, own in kinds.items()
        }

    return Adapters(folder, make_adapter, LANGUAGE_MODEL, unlike)


def mixture(writers: Adapters) -> list[str | None]:
    names = [*writers.folders, None]
    return [names[(2 * row + row // 5) % len(names)] for row in range(len(PROMPTS))]


def test_the_next_tokens_logits_are_those_of_the_adapter_alone(writers):
    encoded = load_tokenizer(writers.base)(PROMPTS, padding=True, return_tensors="pt")
    writers.check(mixture(writers), {key: encoded[key] for key in ("input_ids", "attention_mask")}, **CLOSE)


def test_each_row_is_written_as_its_adapter_alone_writes_it(writers):
    """By a plain loop without a cache; rows with a choice that rounding decides are left out."""
    names, tokenizer, exempt = mixture(writers), load_tokenizer(writers.base), 0
    texts = written_by(writers.bank, names, PROMPTS, NEW_TOKENS)
    for name, prompt, text in zip(names, PROMPTS, texts, strict=True):
        (asked,) = Prompt.of({"prompt": "{text}"}).ids([(prompt,)], tokenizer)
        tokens, margin = list(asked), float("inf")
        while len(tokens) < len(asked) + NEW_TOKENS and tokens[-1] != tokenizer.eos_token_id:
            logits = writers.alone(name, tokens)
            best, second = logits.topk(2).values.tolist()
            tokens.append(int(logits.argmax()))
            margin = min(margin, best - second)
        exempt += margin < NEAR
        assert margin < NEAR or text == tokenizer.decode(tokens[len(asked) :], skip_special_tokens=True)
    assert exempt < len(PROMPTS) / 2
    assert len(set(texts)) > len(writers.folders)  # they do not all write the same


def test_questions_are_answered_as_by_each_adapter_alone(writers):
    """Their kind asks twice: the second time about what the first has answered."""
    names = [name for name in mixture(writers) if name]
    answers = writers.bank.predict(names, PROMPTS[: len(names)])
    for name, prompt, answer in zip(names, PROMPTS, answers, strict=False):
        assert [answer] == loraxs_search.predict(writers.folders[name], prompt)
    assert len({answer.label for answer in answers}) > 2


def test_a_bank_is_of_one_sort(writers, make_adapter, tmp_path):
    modules = ("model.layers.0.self_attn.q_proj",)
    headed = make_adapter(tmp_path / "headed", writers.base, rank=2, target_modules=modules)
    with pytest.raises(UsageError, match="task-2, of kind sequence-classification"):
        writers.bank.load("headed", headed)
    assert "headed" not in writers.bank
    with pytest.raises(UsageError, match="all, of kind word-pairs"):
        AdapterBank.of(str(headed), str(writers.folders["all"]))


def test_tasks_that_write_and_that_choose_share_a_bank(make_adapter, tmp_path):
    save_base(tmp_path / "base")
    generation = {"max_new_tokens": 3, "stop": ["w5"]}
    tasks = {
        "writes": writing(),
        "writes briefly": writing(prompt="{first} say {second}", generation=generation),
        "draws": writing(generation={"max_new_tokens": 6, "stop": [], "temperature": 3.0, "seed": 1}),
        "chooses": choosing(),
        "chooses given": choosing(options="choices", prompt="{words} say"),
    }
    kinds = {name: {"task": task} for name, task in tasks.items()}
    own = Adapters(tmp_path / "base", make_adapter, LANGUAGE_MODEL, lambda _: kinds)
    rows: list[tuple[str, str | tuple[str, ...]]] = [
        ("writes", "w1 w2"),
        ("chooses", "w3 w4 w5 w6"),
        ("writes briefly", ("w7", "w8 w9")),
        ("draws", "w1 w2"),
        ("chooses given", ("w3", "w1 | w2 w4 w6 | w8 w9")),
        ("chooses", "w9"),
        ("writes", "w3 w8 w1 w9"),
    ]
    answers = own.bank.predict([name for name, _ in rows], [question for _, question in rows])
    for (name, question), answer in zip(rows, answers, strict=True):
        (alone,) = loraxs_search.predict(own.folders[name], [question] if isinstance(question, str) else list(question))
        assert (answer.text, answer.label) == (alone.text, alone.label)
        assert answer.score == (None if alone.score is None else pytest.approx(alone.score, rel=1e-5))
