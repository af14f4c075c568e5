"""`start_from`: a trial begins at another adapter's function, at its rank or a larger one, alone and packed."""

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
from support.bases import families
from support.toys import manifest_of
from support.trials import make_spec, train, unpacked
from torch import Tensor

from loraxs_search import assets
from loraxs_search.base_model.layers import output_head
from loraxs_search.base_model.load import load_model
from loraxs_search.engine.passes import forward
from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.methods import get_method
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.task import BaseModelRef
from loraxs_search.records.trial import PeftSettings, TrialSpec
from loraxs_search.tasks.kinds import classifier
from loraxs_search.trial.attach import attach, detach
from loraxs_search.trial.linear_probe import fit_linear_probe
from loraxs_search.trial.snapshot import Snapshot

from .test_heads import make_task

LORA_XS = get_method("lora-xs")


def logits(world: Any, model: Any) -> Tensor:
    batch = world.data.collate("validation", range(8))
    with torch.no_grad():
        return model(**batch.inputs).logits


@pytest.fixture
def learnt(world, tmp_path):
    """Train an adapter of rank 4; return the study's asset made of it, and its logits."""

    def learn(*, with_head: bool = True, **changes: Any) -> tuple[str, Tensor]:
        spec = world.spec("7", scale=2.0, **changes)
        pack = unpacked(world.model, world.factors)
        train(pack, [pack.join(spec, world.data)], 12)
        expected, files = logits(world, pack.base.model), LORA_XS.files(pack.base.model, ())
        pack.base.clear()
        folder = tmp_path / "learnt"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        manifest = manifest_of(world.data.task, BaseModelRef("base"), spec.hyperparameters, "7")
        return assets.keep(LORA_XS.start_asset(folder, manifest, with_head=with_head)), expected

    return learn


def test_a_trial_begins_at_the_others_function(world, learnt):
    start, expected = learnt()
    for changes in ({}, {"rank": 6, "scale": 3.0, "seed": 99}):
        with world.attached(world.spec("1", start_from=start, **{"scale": 2.0, **changes})) as model:
            torch.testing.assert_close(logits(world, model), expected, rtol=1e-5, atol=1e-6)
    start, expected = learnt(target_modules=tuple(world.names[1::2]))  # layers that it lacks start as always
    with world.attached(world.spec("1", start_from=start, scale=2.0, init_std=0.0)) as model:
        torch.testing.assert_close(logits(world, model), expected, rtol=1e-5, atol=1e-6)


def test_without_the_head_r_alone_is_continued(world, learnt):
    start, _ = learnt(with_head=False)
    with world.attached(world.spec("1", rank=8, start_from=start)) as model:
        state = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    with world.attached(world.spec("1", rank=8)) as fresh:
        for name, value in fresh.named_parameters():
            if value.requires_grad:
                is_head = ".modules_to_save." in name
                assert torch.equal(state[name], value) == is_head, name
                assert is_head or (state[name][4:] == 0).all()


def test_packed_with_others_they_equal_lone_trials(world, learnt):
    (whole, _), (without_head, _) = learnt(), learnt(with_head=False)
    specs = [
        world.spec("11", start_from=whole, rank=8, scale=0.5),
        world.spec("12", start_from=without_head, learning_rate=5e-3),
        *world.mixed_specs()[:3],
    ]
    world.check_law([(spec, world.data) for spec in specs])


def test_a_smaller_rank_and_other_factors_are_refused_to_this_trial_alone(world, learnt, monkeypatch):
    """A machine whose singular vectors differ would take R for another function."""
    start, _ = learnt()
    spec, smaller, pack = world.spec("1", start_from=start), world.spec("1", start_from=start, rank=3), world.pack()
    with pytest.raises(UsageError, match=r"`rank`.* 4, .* 3"):
        world.lone(smaller, 1)
    with pytest.raises(UsageError):
        world.join(pack, [smaller])
    own = type(world.factors).get

    def turned(store: Any, weight: Tensor, **request: Any) -> Any:
        factors = own(store, weight, **request)
        return replace(factors, left=factors.left.flip(1))

    monkeypatch.setattr(type(world.factors), "get", turned)
    with pytest.raises(BaseModelError):
        world.lone(spec, 1)
    with pytest.raises(BaseModelError):
        world.join(pack, [spec])
    (other,) = world.join(pack, [world.spec("2")])
    assert pack.step([other]) == {}


# ---- probe -----------------------------------------------------------------------------------------------------------
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
    name, _ = output_head(world.model)
    batch = world.data.collate("train", np.arange(world.data.num_rows("train")))
    with world.attached(probed(world, "1", init_std=0.0)) as model:
        weight, *bias = [p for n, p in model.named_parameters() if n.split(".modules_to_save")[0].endswith(name)]
        outputs = forward(model, batch.inputs, batch.reads)
        world.data.kind.loss(outputs, batch).mean().backward()
        assert all(float(own.grad.abs().max()) < 1e-3 for own in bias)
        assert torch.nn.functional.cosine_similarity(weight.grad.flatten(), -weight.detach().flatten(), 0) > 0


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
    names = [module.name for module in host.info(task).modules]
    probe = {"linear_probe": assets.keep(found.content), "head_init": "probe"}
    started, drawn = (
        host.advance(make_spec("1", names, rank=2, init_std=0.0, **own), 0, None, task)[0] for own in (probe, {})
    )
    assert started.metrics["loss"] < 0.9 * drawn.metrics["loss"]
    host.close()


def test_packed_with_others_probed_ones_equal_lone_trials(world):
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


# ---- precision -------------------------------------------------------------------------------------------------------
METHODS: dict[str, dict[str, Any]] = {"VERA": {"r": 3}, "TINYLORA": {"r": 3, "u": 4}}


@pytest.mark.parametrize("name", METHODS)
def test_frozen_parts_are_those_of_the_checkpoint(name, make_world):
    world = make_world(dtype=torch.bfloat16)
    spec = world.spec("3", method="mine", rank=0, peft=PeftSettings(name, METHODS[name], {}))
    body = {key: value for key, value in world.model.named_parameters() if "classifier" not in key}
    weights = {key: value.clone() for key, value in body.items()}
    bases = {"rounded": (world.model, world.factors), "exact": (load_model(world.base, classifier(2)), None)}
    held: dict[str, dict[str, Tensor]] = {}
    for which, (base, factors) in bases.items():
        before = {id(buffer): buffer for buffer in base.buffers()}
        model = attach(base, spec, factors)
        held[which] = {key: b.float() for key, b in model.named_buffers() if id(b) not in before}
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        detach(model, spec)
    assert held["rounded"].keys() == held["exact"].keys() and held["exact"]
    for key, value in held["exact"].items():
        assert torch.equal(held["rounded"][key], value), key
    after = dict(world.model.named_parameters())
    assert all(after[key] is value and torch.equal(weights[key], value) for key, value in body.items())
    assert {value.dtype for value in body.values()} == {torch.bfloat16}


def test_a_trial_does_not_go_on_beside_other_singular_vectors(make_world):
    """PEFT computes TinyLoRA's where it is put on a base, and signs are a processor's choice."""
    world = make_world()
    spec = world.spec("3", method="mine", rank=0, peft=PeftSettings("TINYLORA", METHODS["TINYLORA"], {}))
    pack = unpacked(world.model, world.factors)
    slot = pack.join(spec, world.data)
    train(pack, [slot], 1)
    state = Snapshot.from_bytes(slot.snapshot().to_bytes())
    first, *others = state.frozen
    assert pack.join(spec, world.data, replace(state, frozen=(first * (1 + 1e-6), *others))).step == 1
    with pytest.raises(BaseModelError, match="trial 3 must be those that it began with"):
        pack.join(spec, world.data, replace(state, frozen=(-first, *others)))
    pack.base.clear()
    model = attach(world.model, spec, world.factors)
    vectors = next(b for key, b in model.named_buffers() if ".tinylora_A." in key)
    vectors[0] *= -1
    assert get_method("mine", spec.hyperparameters.peft).frozen_cosines(model) != state.frozen
    detach(model, spec)
