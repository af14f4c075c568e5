"""A head that gives one output a token: merged as unmerged, in the bank as loaded, and as transformers computes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.families import families
from support.rows import TAGS as LABELS
from transformers import AutoModelForTokenClassification, AutoTokenizer

from loraxs_search import AdapterBank
from loraxs_search.api import load
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.engine.passes import forward
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.export.folder import converted
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.records.task import BaseModelRef, DataSource, Task
from loraxs_search.tasks.kinds import TokenClassification, kind_of
from loraxs_search.tasks.prepared import prepare
from loraxs_search.tasks.rows import SourceLocation
from loraxs_search.trial.evaluate import score_rows

from .conftest import WORDS, World, save_base

FAMILIES = ["bert", "roberta", "distilbert", "gpt2", "llama"]


def write_rows(path: Path, count: int) -> str:
    """Rows of 1 to 20 words, and of some more than fit; a word's tag can be read off the word."""
    lines = []
    for i in range(count):
        words = [(7 * i + 11 * j) % len(WORDS) for j in range(1 + (5 * i) % 27)]
        tags = [LABELS[word % len(LABELS)] for word in words]
        lines.append(json.dumps({"tokens": [WORDS[word] for word in words], "tags": tags}))
    path.write_text("\n".join(lines))
    return str(path)


def make_task(folder: Path) -> Task:
    section = {"columns": {"tokens": "tokens", "tags": "tags"}, "labels": LABELS}
    sizes = {"train": 60, "validation": 21, "test": 20}
    files = {name: write_rows(folder / f"{name}.jsonl", size) for name, size in sizes.items()}
    source, fields = DataSource(data_files=files), TokenClassification.fields(TokenClassification.section(**section))
    scores = {"metric": "f1", "direction": "maximize", "metrics": ("f1", "accuracy")}
    return Task("names", TokenClassification.name, source, max_length=24, **scores, **fields)


class TaggedWorld(World):
    """A base whose trials tag words."""

    def __init__(self, folder: Path, family: str) -> None:
        save_base(folder / "base", family)
        self.base, task = locate(BaseModelRef(str(folder / "base"))), make_task(folder)
        self.data = prepare(task, load_tokenizer(self.base))
        self.load(kind_of(task).model)


@pytest.fixture(params=families(FAMILIES))
def world(request, tmp_path):
    return TaggedWorld(tmp_path, request.param)


def test_loss_and_answers_are_those_of_transformers(world):
    """The mean over the first tokens of a batch, others are masked; a label of a word that was cut is not learnt."""
    model, data = world.model, world.data
    batch = data.collate("train", np.arange(20))
    assert batch.reads is not None
    labels = torch.full_like(batch.inputs["input_ids"], -100)
    labels[batch.reads[:, 0], batch.reads[:, 1]] = batch.targets
    expected = model(**batch.inputs, labels=labels)
    losses = data.kind.loss(forward(model, batch.inputs, batch.reads), batch)
    torch.testing.assert_close(losses.sum() / batch.counts.sum(), expected.loss)
    scores = score_rows(model, data, "train", np.arange(20))
    for row, answer in enumerate(scores.predictions):
        own = batch.reads[batch.reads[:, 0] == row, 1]
        tags = [LABELS[tag] for tag in expected.logits[row, own].argmax(-1).tolist()]
        missed = len(data.labels("train")[row].split()) - len(own)
        assert answer.split() == [*tags, *["O"] * missed]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_an_adapter_answers_alike_wherever_it_is_asked(family, tmp_path, make_adapter):
    with use_factor_store(FactorStore(tmp_path / "factors")):
        world = TaggedWorld(tmp_path, family)
        task = world.data.task
        folder = make_adapter(tmp_path / "own", world.base, task=task, rank=4, target_modules=tuple(world.names))
        other = make_adapter(
            tmp_path / "other", world.base, task=task, rank=2, target_modules=(world.names[0],), seed=1
        )
        texts = [" ".join(json.loads(line)["tokens"]) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
        answers = load(str(folder))(texts)
        others = load(str(other))(texts)
        assert [answer.label for answer in answers] != [answer.label for answer in others]
        assert load(str(folder))(texts[3]) == answers[3:4]
        rows = [(text.split(),) for text in texts[2:4]]
        assert list(load(str(folder)).in_parts(rows, SourceLocation("rows"), 1)) == [answers[2:3], answers[3:4]]

        bank = AdapterBank.of(str(folder), str(other))
        mixed = bank.predict([str(folder), str(other)] * len(texts), [text for text in texts for _ in range(2)])
        assert mixed[::2] == answers
        assert mixed[1::2] == others

        assert of_transformers(converted(folder, "merged"), texts) == [answer.label for answer in answers]


def of_transformers(folder: Path, texts: list[str]) -> list[str]:
    """Return the tags that transformers gives words by their first tokens; `O` beyond 24 tokens."""
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    answers = []
    for text in texts:
        inputs = tokenizer(text.split(), is_split_into_words=True, return_tensors="pt", truncation=True, max_length=24)
        with torch.no_grad():
            tags = [model.config.id2label[i] for i in model(**inputs).logits[0].argmax(-1).tolist()]
        firsts: dict[Any, str] = {}
        for word, tag in zip(inputs.word_ids(), tags, strict=True):
            firsts.setdefault(word, tag)
        answers.append(" ".join(firsts.get(word, "O") for word in range(len(text.split()))))
    return answers
