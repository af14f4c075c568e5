"""Stored adapters without a head: scored, timed, and shown to people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.toy_language import save_base, save_rows, writing

import loraxs_search
from loraxs_search.base_model.attention import _padded_attention
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.locate import locate
from loraxs_search.errors import BaseModelError
from loraxs_search.methods.loading import load_adapter_folder, read_manifest
from loraxs_search.methods.verification import compare_reference_logits
from loraxs_search.records.adapter import ReferenceLogits
from loraxs_search.records.task import BaseModelRef, DataSource, Task, TaskModel
from loraxs_search.trial.evaluate import score_folder

LANGUAGE_MODEL = TaskModel("AutoModelForCausalLM")


@pytest.fixture
def base(tmp_path):
    save_base(tmp_path / "base")
    return locate(BaseModelRef(str(tmp_path / "base")))


@pytest.fixture
def source(tmp_path):
    save_rows(tmp_path)
    return DataSource(data_files={name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")})


@pytest.fixture
def make(base, make_adapter, tmp_path):
    modules = tuple(module.name for module in linear_modules(base, LANGUAGE_MODEL))

    def make(task: Task) -> Path:
        return make_adapter(tmp_path / task.name, base, task=task, seed=1, rank=4, target_modules=modules)

    return make


def predicted(folder: Path, source: DataSource) -> list[str]:
    lines = Path(source.data_files["test"]).read_text().splitlines()
    return [answer.label for answer in loraxs_search.predict(folder, [json.loads(line)["words"] for line in lines])]


def test_what_is_scored_is_what_predict_writes(make, source):
    task = writing(source=source)
    folder = make(task)
    said = score_folder(folder, task).answers
    assert len(said.labels) == 40
    assert list(said.predictions) == predicted(folder, source)


def test_an_adapter_is_scored_on_other_rows_in_its_own_way(make, source):
    """A champion that was asked by another prompt is asked by that one."""
    task = writing(source=source)
    folder = make(replace(writing("older", source), settings=task.settings | {"prompt": "{words} say"}))
    said = score_folder(folder, task).answers
    assert list(said.predictions) == predicted(folder, source)
    assert said.labels == score_folder(make(task), task).answers.labels
    turned = replace(task, settings=task.settings | {"reference": "{words}"})
    assert score_folder(folder, turned).answers.labels != said.labels, "but for its own reference"


@pytest.fixture
def own_attention(monkeypatch):
    """The number of keys at each call of our own attention."""
    seen: list[int] = []

    def watched(module, query, key, *others, **more):
        seen.append(key.shape[2])
        return _padded_attention(module, query, key, *others, **more)

    monkeypatch.setattr("loraxs_search.base_model.attention._padded_attention", watched)
    return seen


def test_whoever_asks_an_adapter_computes_attention_as_trials_do(make, source, base, own_attention):
    task = writing(source=source)
    folder = make(task)
    bank = loraxs_search.AdapterBank(base, task_model=LANGUAGE_MODEL)
    bank.load("one", folder)
    for ask in (
        lambda: loraxs_search.predict(folder, "say one two three"),
        lambda: score_folder(folder, task),
        lambda: bank.predict(["one"], ["say one two three"]),
    ):
        own_attention.clear()
        ask()
        assert max(own_attention) > 6  # the model's own check has fewer
    model = load_adapter_folder(folder, base=base)
    own_attention.clear()
    model(input_ids=torch.arange(4, 20)[None])
    assert not own_attention  # whoever loads one has the library's own


# ---- reference logits ------------------------------------------------------------------------------------------------
def test_its_reference_logits_are_few(make):
    probe = read_manifest(make(writing())).probe
    assert all(len(row) <= 64 for row in probe.logits)


def test_large_logits_may_differ_by_what_rounding_makes_of_them():
    """Those of SmolLM2 in float32 are 1.7e-4 off in float64, and 29 at most."""
    reference = ReferenceLogits(((1, 2),), ((28.6, -3.0),))
    compare_reference_logits(torch.tensor([[28.6 + 3e-4, -3.0 - 3e-4]]), reference)
    with pytest.raises(BaseModelError, match=r"a difference of 0\.01"):
        compare_reference_logits(torch.tensor([[28.6, -3.01]]), reference)
    small = ReferenceLogits(((1, 2),), ((0.5, -0.3),))
    with pytest.raises(BaseModelError, match=r"a difference of 0\.0003"):
        compare_reference_logits(torch.tensor([[0.5003, -0.3]]), small)
