"""What every baseline keeps to, whatever it learns; see `tasks/baselines.py`. One of them is from outside."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from support.bases import SMOLLM, byte_tokenizer, language_model
from support.same_answer_as import SameAnswerAs
from support.text_tasks import writing_task

from loraxs_search.base_model.load import bare_body
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.search import SHOTS, Baseline
from loraxs_search.records.task import DataSource, Task
from loraxs_search.tasks.baselines import (
    BASELINES,
    SPLITS,
    BaselineModel,
    SplitValues,
    fitting_baselines,
    measure_baselines,
    probe_body,
)
from loraxs_search.tasks.prepared import prepare

SIZES = {"train": 60, "validation": 21, "test": 17}
KINDS = ["sequence-classification", "ordinal", "multi-label", "regression", "text-generation", "taught"]
METRICS = {
    "taught": "accuracy",
    "sequence-classification": "accuracy",
    "ordinal": "mae",
    "multi-label": "micro_f1",
    "regression": "pearson",
}
NAMES = [*BASELINES.names(), SameAnswerAs.name]
LINEAR = ("tfidf", "features")


def fits(kind: str, name: str) -> bool:
    return kind == "taught" if name == "teacher" else kind != "text-generation" or name not in LINEAR


FITTING = [(kind, name) for kind in KINDS for name in NAMES if fits(kind, name)]


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(BASELINES._entries, SameAnswerAs.name, SameAnswerAs)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")

    def make(name: str, rows: list[dict[str, Any]]) -> str:
        path = folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return make


def labelled_task(kind: str, write: Callable[..., str]) -> Task:
    """Texts that say `bad` or `good` among words that say nothing."""
    files = {}
    for split, size in SIZES.items():
        rows = [{"text": f"w{i % 9} {('bad', 'good')[i % 2]} w{i % 7}", "label": i % 2} for i in range(size)]
        if kind == "regression":
            rows = [row | {"label": row["label"] + i / 100} for i, row in enumerate(rows)]
        if kind == "multi-label":
            rows = [row | {"label": [row["label"]]} for row in rows]
        if kind == "taught":
            rows = [row | {"bad": i % 3 / 2, "good": 1 - i % 3 / 2} for i, row in enumerate(rows)]
        files[split] = write(f"{kind}-{split}.jsonl", rows)
    metric, labels = METRICS[kind], () if kind == "regression" else ("bad", "good")
    direction = "minimize" if metric == "mae" else "maximize"
    about = (DataSource(data_files=files), "text", "label", metric, direction)
    task = Task("t", kind, *about, (metric,), labels=labels, max_length=32)
    if kind != "taught":
        return task
    teacher = {"columns": ["bad", "good"], "baseline": True}
    return replace(task, kind="sequence-classification", settings={"teacher": teacher})


@pytest.fixture(scope="module")
def data(request, write):
    task = writing_task(write) if request.param == "text-generation" else labelled_task(request.param, write)
    return prepare(task, byte_tokenizer())


@pytest.fixture(scope="module")
def body():
    """The body of a base, which nothing may change."""
    body = bare_body(language_model(SMOLLM))
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    yield body
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())
    assert not any(module._forward_hooks for module in body.modules())


@pytest.fixture
def inputs(data, body):
    return data, body, torch.device("cpu")


@pytest.mark.parametrize(("data", "name"), FITTING, indirect=["data"])
def test_its_answers_are_in_order_score_as_it_says_and_come_again(name, inputs):
    data, *_ = inputs
    entry = BASELINES.get(name)
    assert entry.name == name and entry.title
    assert not name.endswith(SHOTS)  # which would be read as the untouched base
    assert name in fitting_baselines(data.kind)
    answers = dict(entry(*inputs).answers())
    assert tuple(answers) == SPLITS
    for split, said in answers.items():
        assert said.shape == (data.num_rows(split),)
        assert all(map(math.isfinite, data.kind.measure(said, data.labels(split)).values()))
    found, again = (replace(entry(*inputs).measure(), seconds=0.0) for _ in range(2))
    assert found == again == from_json(Baseline, to_json(found))
    assert (found.name, found.failed, found.applies) == (name, "", True)
    assert not found.is_unmeasured
    assert (found.answer is None) == bool(found.test_answers)
    constant = found.answer if found.answer is not None else 0
    said = found.test_answers or (constant,) * data.num_rows("test")
    labels = data.labels("test")
    assert data.kind.measure(np.array(said, labels.dtype), labels) == pytest.approx(dict(found.test_metrics))


@pytest.mark.parametrize("data", [kind for kind in KINDS if kind != "text-generation"], indirect=True)
def test_a_probe_scores_train_rows_that_its_model_has_not_seen(inputs, monkeypatch):
    data, *_ = inputs
    asked = list[str]()
    monkeypatch.setattr(
        data, "collate", lambda split, rows: (asked.append(split), type(data).collate(data, split, rows))[1]
    )

    def errors() -> float:
        score = probe_body(*inputs)
        return score if data.task.direction == "minimize" else 1 - score

    assert errors() == errors() < 0.15
    assert set(asked) == {"train"}
    noise = np.random.default_rng(0).permutation(data.labels("train"))
    monkeypatch.setattr(data, "labels", lambda split: noise)
    monkeypatch.setattr("loraxs_search.tasks.baselines._ALPHAS", [1e-6])  # without a penalty, seen noise is learnt
    assert errors() > 0.4


# ---- measuring them all ----------------------------------------------------------------------------------------------
class Broken(BaselineModel):
    name: ClassVar[str] = "broken"
    title: ClassVar[str] = "a model with a fault"

    def answers(self) -> SplitValues:
        raise ValueError("no\nmore")
        yield


@pytest.mark.parametrize("data", KINDS, indirect=True)
def test_a_host_measures_those_that_fit_in_order_and_one_that_fails_stops_no_other(inputs, monkeypatch):
    monkeypatch.setitem(BASELINES._entries, "broken", Broken)
    found = measure_baselines(*inputs)
    is_linear = inputs[0].kind.is_linear
    own = ["constant", *LINEAR] if is_linear else ["constant"]
    own += ["teacher"] * inputs[0].kind.has_teacher_baseline
    assert [one.name for one in found] == [*own, SameAnswerAs.name, "broken"]
    assert [one.failed for one in found[:-1]] == [""] * (len(found) - 1)
    assert found[-1].failed == "ValueError: no"
    assert found[-1].is_unmeasured
