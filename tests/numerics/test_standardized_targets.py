"""Regression learns standardised numbers; what is written and answered is in the labels' own units."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import toy_language
from support.sealed import manifest_of, seal
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from loraxs_search import assets
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.manifest import Manifest
from loraxs_search.methods import get_method
from loraxs_search.methods.export.folder import converted
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.task import BaseModelRef, Task
from loraxs_search.records.trial import Hyperparameters, TrialSpec
from loraxs_search.registry.card import model_card
from loraxs_search.search_space.load import parse_space
from loraxs_search.tasks.prepared import prepare
from loraxs_search.trial.evaluate import score_folder

pytestmark = pytest.mark.usefixtures("in_warm_home")
STEPS = 60
SPREAD, MEAN = 50_000.0, 150_000.0
only_bert = pytest.mark.parametrize("base", ["bert"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def base(request, tiny_base, tmp_path_factory):
    """A base whose head has a bias, and one whose head has none."""
    if request.param == "bert":
        return BaseModelRef(str(tiny_base))
    folder = tmp_path_factory.mktemp("llama")
    toy_language.save_base(folder)
    return BaseModelRef(str(folder))


def make_task(folder: Path, spread: float = SPREAD, mean: float = MEAN, **changes: Any) -> Task:
    """Write rows whose number follows from their words; return the task as a launch stores it."""
    rows = []
    for i in range(120):
        words = [toy_language.WORDS[(7 * i + 3 * j) % 20] for j in range(2 + i % 5)]
        rows.append({"text": " ".join(words), "price": mean + spread * ((i % 5) - 2 + ("w3" in words))})
    files = {}
    for split, own in {"train": rows[:80], "validation": rows[80:100], "test": rows[100:]}.items():
        files[split] = str(folder / f"{spread}-{mean}-{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in own))
    text = f"""
task:
  name: prices
  kind: regression
  data: {{data_files: {json.dumps(files)}}}
  columns: {{text: text, label: price}}
  metrics: [mse, pearson]
  max_length: 16
base_model: some/base
parameters: {{rank: 2, learning_rate: 0.01}}
"""
    return replace(parse_space(text, source="s.yaml", folder=folder).task, pooling="class", **changes)


def make_spec(host: TrialHost, trial_id: str = "1", **changes: Any) -> TrialSpec:
    modules = tuple(module.name for module in host.info().modules)
    values: dict[str, Any] = {"rank": 8, "batch_size": 16, "max_steps": STEPS, "seed": 3}
    return TrialSpec(trial_id, {}, Hyperparameters(modules, 1e-2, 1e-2, **{**values, **changes}))


def make_host(base: BaseModelRef, task: Task) -> TrialHost:
    return TrialHost(base, task, precision="float32", device="cpu")


def save(folder: Path, host: TrialHost, spec: TrialSpec, state: bytes, task: Task) -> Manifest:
    """Write a trained adapter as a search keeps it."""
    confirmed, info = host.confirm(spec, state), host.info()
    folder.mkdir()
    for name, content in confirmed.files.items():
        (folder / name).write_bytes(content)
    known = {"base_digest": info.base.weight_digest, "data_fingerprint": info.data_fingerprint}
    base, hyper = BaseModelRef(info.base.path), spec.hyperparameters
    return seal(folder, manifest_of(task, base, hyper, spec.trial_id, probe=confirmed.probe, **known))


@only_bert
def test_prices_are_learnt_as_their_standardised_values_are(base, tmp_path):
    small, large = make_task(tmp_path, 1.0, 3.0), make_task(tmp_path)
    reports = []
    for task in (small, large):
        host = make_host(base, task)
        reports.append(host.advance(make_spec(host), STEPS, None)[0])
    assert reports[1].metrics["pearson"] == pytest.approx(reports[0].metrics["pearson"], abs=1e-3)
    assert reports[1].metrics["pearson"] > 0.8
    assert reports[1].metrics["mse"] == pytest.approx(reports[0].metrics["mse"] * SPREAD**2, rel=1e-2)
    assert reports[1].train_loss == pytest.approx(reports[0].train_loss, rel=1e-2)


@pytest.mark.parametrize(("base", "head"), [("bert", "full"), ("llama", "output")], indirect=["base"], scope="module")
def test_files_answer_in_the_labels_own_units(base, tmp_path, head):
    task = make_task(tmp_path)
    host = make_host(base, task)
    spec = make_spec(host, head=head)
    _, state = host.advance(spec, 20, None)
    answers = host.answer(spec, state, range(20))
    manifest = save(tmp_path / "adapter", host, spec, state, task)
    model = load_adapter_folder(tmp_path / "adapter")  # compares the reference logits, too
    data = prepare(task, load_tokenizer(locate(manifest.base_model)))
    with torch.no_grad():
        logits = torch.cat([model(**data.collate("test", [i]).inputs).logits for i in range(20)])
    assert logits.squeeze(-1).tolist() == pytest.approx(list(answers.predictions), rel=1e-4)
    assert score_folder(tmp_path / "adapter", task).answers.predictions == pytest.approx(answers.predictions, rel=1e-4)
    assert min(answers.labels) >= MEAN - 2 * SPREAD


@pytest.mark.parametrize("base", ["bert", "llama"], indirect=True, scope="module")
def test_trials_start_from_the_answers_of_an_adapter(base, tmp_path):
    """Its rows may have had another mean and spread."""
    task, method = make_task(tmp_path), get_method("lora-xs")
    host = make_host(base, task)
    spec = make_spec(host)
    _, state = host.advance(spec, 20, None)
    manifest = save(tmp_path / "adapter", host, spec, state, task)
    start = assets.keep(method.start_asset(tmp_path / "adapter", manifest, with_head=True))
    expected = load_adapter_folder(tmp_path / "adapter")
    other = make_task(tmp_path, 2 * SPREAD, 1000.0)
    again = make_host(base, other)
    started = replace(spec, hyperparameters=replace(spec.hyperparameters, start_from=start))
    report, _ = again.advance(started, 0, None)
    data = prepare(other, load_tokenizer(locate(manifest.base_model)))
    with torch.no_grad():
        logits = torch.cat([expected(**data.collate("validation", [i]).inputs).logits for i in range(20)])
    mse = float((logits.squeeze(-1) - torch.tensor(data.labels("validation"))).square().mean())
    assert report.metrics["mse"] == pytest.approx(mse, rel=1e-3)
    packed = TrialHost(base, other, slots=2, precision="float32", device="cpu")
    try:
        assert packed.advance(started, 0, None, other)[0].metrics["mse"] == pytest.approx(mse, rel=1e-3)
    finally:
        packed.close()


def test_each_form_on_a_bfloat16_base_answers_as_exactly_as_its_head_was_trained(tiny_base, tmp_path, monkeypatch):
    """In bfloat16 a head would answer years in steps of 8; the checkpoint's own head, of two labels, is passed over."""
    shutil.copytree(tiny_base, tmp_path / "base")
    loaded = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=2, dtype=torch.bfloat16)
    loaded.save_pretrained(tmp_path / "base")
    task = make_task(tmp_path, 15.0, 1990.0)
    host = TrialHost(BaseModelRef(str(tmp_path / "base")), task, precision="bfloat16", device="cpu")
    data = prepare(task, load_tokenizer(locate(BaseModelRef(str(tmp_path / "base")))))

    @torch.no_grad()
    def answers(model: PreTrainedModel) -> list[float]:
        return [float(model(**data.collate("test", [i]).inputs).logits) for i in range(20)]

    for own in ({}, {"method": "lora", "method_params": {"rank": 4}}):
        spec = make_spec(host, **own)
        _, state = host.advance(spec, 20, None)
        folder = tmp_path / spec.hyperparameters.method
        manifest = save(folder, host, spec, state, task)
        (folder / "README.md").write_text(model_card(manifest))
        seal(folder, manifest)
        expected = answers(load_adapter_folder(folder))
        for form in (folder, converted(folder, "lora"), converted(folder, "merged")):
            *_, code = re.findall(r"```python\n(.*?)```", (form / "README.md").read_text(), flags=re.S)
            monkeypatch.chdir(form)
            exec(code.replace('"base"', repr(str(tmp_path / "base"))), space := {})
            assert answers(space["model"]) == pytest.approx(expected, abs=1.0)
