"""Stored adapters without a head: scored, and asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.toy_language import save_base, save_rows, writing

import loraxs_search
from loraxs_search.base_model.attention import _padded_attention
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.records.task import DataSource, TaskModel
from loraxs_search.trial.evaluate import score_folder


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base")


@pytest.fixture
def source(tmp_path):
    save_rows(tmp_path)
    return DataSource(data_files={name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")})


@pytest.fixture
def make(base, make_adapter, tmp_path):
    return lambda task: make_adapter(tmp_path / task.name, base, task=task, seed=1, rank=4)


def predicted(folder: Path, source: DataSource) -> list[str]:
    lines = Path(source.data_files["test"]).read_text().splitlines()
    return [answer.label for answer in loraxs_search.predict(folder, [json.loads(line)["words"] for line in lines])]


def test_what_is_scored_is_what_predict_writes_whatever_the_rows_own_task_asks(make, source):
    """A champion that was asked by another prompt is asked by that one, but for the rows' own reference."""
    task = writing(source=source)
    own = make(task)
    older = make(replace(writing("older", source), settings=task.settings | {"prompt": "{words} say"}))
    found = [score_folder(folder, task).answers for folder in (own, older)]
    for folder, said in zip((own, older), found, strict=True):
        assert len(said.labels) == 40
        assert list(said.predictions) == predicted(folder, source)
    assert found[0].labels == found[1].labels
    turned = replace(task, settings=task.settings | {"reference": "{words}"})
    assert score_folder(older, turned).answers.labels != found[1].labels


def test_whoever_asks_an_adapter_computes_attention_as_trials_do(make, source, base, monkeypatch):
    keys: list[int] = []

    def watched(module, query, key, *others, **more):
        keys.append(key.shape[2])
        return _padded_attention(module, query, key, *others, **more)

    monkeypatch.setattr("loraxs_search.base_model.attention._padded_attention", watched)
    task = writing(source=source)
    folder = make(task)
    bank = loraxs_search.AdapterBank(base, task_model=TaskModel("AutoModelForCausalLM"))
    bank.load("one", folder)
    for ask in (
        lambda: loraxs_search.predict(folder, "say one two three"),
        lambda: score_folder(folder, task),
        lambda: bank.predict(["one"], ["say one two three"]),
    ):
        keys.clear()
        ask()
        assert max(keys) > 6  # the model's own check has fewer
    model = load_adapter_folder(folder, base=base)
    keys.clear()
    model(input_ids=torch.arange(4, 20)[None])
    assert not keys  # whoever loads one has the library's own
