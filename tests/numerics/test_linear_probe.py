"""A head that starts as the linear probe of the untouched base: the same in a lone trial, in a pack, and resumed."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support import toy_language
from support.families import families

from loraxs_search import assets
from loraxs_search.base_model.layers import output_head
from loraxs_search.engine.passes import forward
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.trial import TrialSpec
from loraxs_search.trial.attach import attach, detach
from loraxs_search.trial.linear_probe import fit_linear_probe

from .test_standardized_targets import make_task


def probed(world: Any, trial_id: str, **changes: Any) -> TrialSpec:
    """Return a trial whose head starts as the probe of the world's base."""
    digest = assets.keep(fit_linear_probe(world.data, world.model).content)
    return world.spec(trial_id, head_init="probe", linear_probe=digest, **changes)


def first_loss(world: Any, spec: TrialSpec) -> float:
    """Return a trial's mean loss on all train rows before its first step."""
    data = world.data
    batch = data.collate("train", np.arange(data.num_rows("train")))
    with world.attached(spec) as model, torch.no_grad():
        losses = data.kind.loss(forward(model, batch.inputs, batch.reads), batch)
    return float(losses.sum() / batch.counts.sum())


@pytest.mark.parametrize("family", families(["bert", "gpt2", "llama"]))
def test_a_trial_starts_with_the_probes_loss_and_no_other_output_layer_is_better(make_world, family):
    """On all train rows the probe has the least loss plus penalty: gradients of the loss are the penalty's own."""
    world = make_world(family)
    started = first_loss(world, probed(world, "1", init_std=0.0))
    drawn = [first_loss(world, world.spec(f"{seed}", init_std=0.0)) for seed in range(3)]
    assert started < 0.6 < min(drawn), "a constant answer has a loss of .69"
    spec, (name, _) = probed(world, "1", init_std=0.0), output_head(world.model)
    with use_factor_store(world.factors):
        model = attach(world.model, spec)
    batch = world.data.collate("train", np.arange(world.data.num_rows("train")))
    weight, *bias = [p for n, p in model.named_parameters() if n.split(".modules_to_save")[0].endswith(name)]
    outputs = forward(model, batch.inputs, batch.reads)
    world.data.kind.loss(outputs, batch).mean().backward()
    assert all(float(own.grad.abs().max()) < 1e-3 for own in bias)
    assert torch.nn.functional.cosine_similarity(weight.grad.flatten(), -weight.detach().flatten(), 0) > 0
    detach(model, spec)


@pytest.mark.usefixtures("in_warm_home")
@pytest.mark.parametrize("has_bias", [True, False])
def test_numbers_have_a_probe_in_standard_units(tmp_path, tiny_base, *, has_bias):
    if not has_bias:
        toy_language.save_base(tmp_path)
    task = make_task(tmp_path, mean=150_000.0 if has_bias else 0.0)
    host = TrialHost(BaseModelRef(str(tiny_base if has_bias else tmp_path)), task, precision="float32", device="cpu")
    found = host.linear_probe(task)
    weights = safetensors.torch.load(found.content)
    assert found.num_rows == 80
    assert any(name.endswith(".bias") for name in weights) == has_bias
    spec = TrialSpec("1", {}, replace(toy_spec(host, task), linear_probe=assets.keep(found.content), head_init="probe"))
    started, _ = host.advance(spec, 0, None, task)
    drawn, _ = host.advance(TrialSpec("2", {}, toy_spec(host, task)), 0, None, task)
    assert started.metrics["loss"] < 0.9 * drawn.metrics["loss"]
    host.close()


def toy_spec(host: TrialHost, task: Any) -> Any:
    from support.trials import make_spec

    names = [module.name for module in host.info(task).modules]
    return make_spec("1", names, rank=2, init_std=0.0).hyperparameters


def test_packed_with_others_they_equal_lone_trials_and_resumed_uninterrupted_ones(world):
    specs = [probed(world, "11"), probed(world, "12", rank=8, head_learning_rate=5e-3), *world.mixed_specs()[:3]]
    # Near the least loss little but rounding is left of gradients.
    world.check_law([(spec, world.data) for spec in specs], 15, 1e-4)


@pytest.mark.parametrize("family", families(["roberta", "distilbert", "deberta"]))
def test_a_head_that_draws_a_layer_before_its_output_has_none(make_world, family):
    world = make_world(family)
    found = fit_linear_probe(world.data, world.model)
    assert not found.content
    assert "has no numbers yet" in found.reason


def test_a_large_base_and_long_rows_are_read_in_part_and_a_clock_decides_nothing(world, monkeypatch):
    whole = fit_linear_probe(world.data, world.model)
    monkeypatch.setattr("loraxs_search.trial.linear_probe._CPU_PRODUCTS", 4e6)
    part = fit_linear_probe(world.data, world.model)
    assert 0 < part.num_rows < whole.num_rows
    monkeypatch.setattr(time, "thread_time", count(0.0, 100.0).__next__)  # as on a busy machine
    again = fit_linear_probe(world.data, world.model)
    assert (again.content, again.num_rows) == (part.content, part.num_rows)
    monkeypatch.setattr("loraxs_search.trial.linear_probe._CPU_PRODUCTS", 1)
    none = fit_linear_probe(world.data, world.model)
    assert not none.content
    assert "needs 10 train rows" in none.reason


def test_a_host_fits_the_same_one_whatever_is_on_its_base(world):
    task = world.data.task
    host = TrialHost(BaseModelRef(id=world.base.path), task, precision="float32", device="cpu")
    before = host.linear_probe(task)
    for spec in (world.lora("1"), world.dora("2")):
        host.advance(spec, 3, None, task)  # its adapter and head stay on
        assert host.linear_probe(task).content == before.content
    assert before.num_rows == 90
    host.close()
