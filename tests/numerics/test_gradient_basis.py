"""`basis: gradient`: the first step of full fine-tuning as factors and as the start of R, alone, packed and stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from loraxs_search import assets
from loraxs_search.base_model import load_model
from loraxs_search.factors import pack_factors
from loraxs_search.lr_schedule import lr_factor
from loraxs_search.methods import get_method
from loraxs_search.records import Estimate, TrialSpec
from loraxs_search.tasks import TrainingBatches
from loraxs_search.tasks.kinds import classifier
from loraxs_search.trial import Snapshot, TrialRun, attach, detach, estimate_factors
from loraxs_search.trial.forward import forward_batch
from loraxs_search.trial.run import start_head

TOLERANCE = 1e-5
RANK, ROWS = 8, 40


@pytest.fixture
def gradient_spec(world: Any) -> Callable[..., TrialSpec]:
    """A trial on the gradient's basis, whose factors have been estimated."""
    return _maker(world)


def _maker(world: Any, num_rows: int = ROWS) -> Callable[..., TrialSpec]:
    kept: dict[str, str] = {}

    def make(trial_id: str, **changes: Any) -> TrialSpec:
        own = {"basis": "gradient", "sigma": "none", "init_std": 0.0, "factor_rank": RANK, **changes}
        spec = world.spec(trial_id, **own)
        estimate = Estimate(RANK, spec.hyperparameters.head, num_rows, seed=5)
        if estimate.name not in kept:
            kept[estimate.name] = assets.keep(
                pack_factors(estimate_factors(world.model, world.data, world.names, estimate), {})
            )
        hyper = get_method("lora-xs").with_assets(spec.hyperparameters, kept, estimate.seed)
        return replace(spec, hyperparameters=hyper)

    return make


def rows_of(world: Any, num_rows: int) -> list[Tensor]:
    """Return the gradient of each adapted weight over the estimate's rows, by autograd on all of them at once."""
    model = load_model(world.base, classifier(2))
    start_head(model, "full", 5)
    layers = {name: model.get_submodule(name) for name in world.names}
    for layer in layers.values():
        layer.get_parameter("weight").requires_grad_(True)
    batches = TrainingBatches(world.data.lengths("train"), 16, 5)
    total = torch.tensor(0.0)
    left, step = num_rows, 0
    while left:
        rows = batches.at(step)[:left]
        batch = world.data.collate("train", rows)
        total = total + world.data.kind.loss(forward_batch(model, batch), batch).sum()
        left, step = left - len(rows), step + 1
    total.backward()
    grads = [layer.get_parameter("weight").grad for layer in layers.values()]
    return [grad.T if isinstance(layer, Conv1D) else grad for grad, layer in zip(grads, layers.values(), strict=True)]


# ---- what is estimated -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_factors_are_those_of_the_first_step(make_world: Callable[..., Any], family: str) -> None:
    world = make_world(family)
    estimate = Estimate(rank=64, num_rows=ROWS, seed=5)
    factors = estimate_factors(world.model, world.data, world.names, estimate)
    assert list(factors) == world.names
    for gradient, own in zip(rows_of(world, ROWS), factors.values(), strict=True):
        step = own.left @ torch.diag(own.singular_values) @ own.right
        assert (step.sign() == -gradient.sign()).float().mean() > 0.99  # rounding alone turns the sign of a zero
        torch.testing.assert_close(step.abs(), torch.ones_like(step), rtol=0, atol=1e-4)
    assert not any(p.requires_grad for p in world.model.parameters())
    assert all(p.grad is None for p in world.model.parameters())


def test_gradients_are_estimated_for_as_many_layers_at_a_time_as_fit(world: Any) -> None:
    estimate = Estimate(rank=4, num_rows=20, seed=5)
    whole = estimate_factors(world.model, world.data, world.names, estimate)
    for max_bytes in (1, 20_000):
        parts = estimate_factors(world.model, world.data, world.names, estimate, max_bytes=max_bytes)
        assert pack_factors(parts, {}) == pack_factors(whole, {})


def test_fewer_rows_than_asked_are_all_taken(world: Any) -> None:
    some = [estimate_factors(world.model, world.data, world.names[:1], Estimate(4, num_rows=n)) for n in (90, 10_000)]
    assert pack_factors(some[0], {}) == pack_factors(some[1], {})


# ---- how a trial starts ----------------------------------------------------------------------------------------------
def test_a_trial_starts_at_its_learning_rates_first_step(world: Any, gradient_spec: Callable[..., TrialSpec]) -> None:
    spec = gradient_spec("1", rank=RANK, learning_rate=3e-3, warmup_ratio=0.1)
    rate = 3e-3 * lr_factor(0, 50, 0.1, "linear")
    model = attach(world.model, spec)
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "loraxs_R")}
    factors = estimate_factors(
        load_model(world.base, classifier(2)), world.data, world.names, Estimate(RANK, num_rows=ROWS, seed=5)
    )
    for name, layer in layers.items():
        own = factors[name]
        expected = rate * (own.left @ torch.diag(own.singular_values) @ own.right)
        torch.testing.assert_close(layer.get_delta_weight("default"), expected, rtol=1e-5, atol=1e-8)
    detach(model, spec)


def test_the_start_lowers_the_loss_as_the_gradient_predicts(
    world: Any, gradient_spec: Callable[..., TrialSpec]
) -> None:
    spec = gradient_spec("1", rank=RANK, learning_rate=1e-3)
    rate = spec.hyperparameters.learning_rate * lr_factor(0, 50, 0.06, "linear")
    factors = estimate_factors(world.model, world.data, world.names, Estimate(RANK, num_rows=ROWS, seed=5))
    steps = [own.left @ torch.diag(own.singular_values) @ own.right for own in factors.values()]
    predicted = sum(float((g * step).sum()) for g, step in zip(rows_of(world, ROWS), steps, strict=True)) * rate / ROWS
    measured = _loss(world, spec) - _loss(world, world.spec("9", seed=5, init_std=0.0))
    assert predicted < 0
    assert measured == pytest.approx(predicted, rel=0.05)


def _loss(world: Any, spec: TrialSpec) -> float:
    """Return the mean loss of a fresh trial on the rows of the estimate."""
    batches = TrainingBatches(world.data.lengths("train"), 16, 5)
    rows = [batches.at(step) for step in range(3)]
    batch = world.data.collate("train", torch.cat([torch.from_numpy(own) for own in rows])[:ROWS].numpy())
    model = attach(world.model, spec)
    with torch.no_grad():
        value = world.data.kind.loss(forward_batch(model, batch), batch).double().mean()
    detach(model, spec)
    return float(value)


def test_ranks_and_module_sets_are_prefixes_of_one_set(world: Any, gradient_spec: Callable[..., TrialSpec]) -> None:
    wide, narrow = gradient_spec("1", rank=8), gradient_spec("2", rank=3, target_modules=tuple(world.names[1::2]))
    kept = {}
    for spec in (wide, narrow):
        model = attach(world.model, spec)
        kept[spec.name] = {n: b.clone() for n, b in model.named_buffers() if ".loraxs_A." in n}
        detach(model, spec)
    assert kept["2"].keys() < kept["1"].keys()
    assert all(torch.equal(value, kept["1"][name][:3]) for name, value in kept["2"].items())


# ---- packed, resumed -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_packed_with_unlike_trials_they_equal_lone_trials(make_world: Callable[..., Any], family: str) -> None:
    world = make_world(family)
    make, pack = _maker(world), world.pack(num_workers=2)
    specs = [
        make("11", learning_rate=2e-4, warmup_ratio=0.2),
        make("12", learning_rate=1e-4, rank=8, target_modules=tuple(world.names[1::2]), weight_decay=0.1),
        *world.mixed_specs()[:3],
        make("13", learning_rate=5e-4, rank=3, lr_schedule="constant", warmup_ratio=0.0),
        make("14", learning_rate=3e-4, rank=6, rank_pattern="upper"),
    ]
    slots = world.join(pack, specs)
    for _ in range(20):
        assert pack.step(slots) == {}
    world.check_each_is_as_alone(pack, slots, 20, TOLERANCE)


def test_its_size_in_a_pack_is_that_of_its_file(world: Any, gradient_spec: Callable[..., TrialSpec]) -> None:
    spec, pack = gradient_spec("1", rank=5), world.pack()
    (slot,) = world.join(pack, [spec])
    lone = world.lone(spec, 1)
    assert slot.size == lone.reports[-1].size
    assert slot.size.r_parameters == 25 * len(world.names)


def test_resumed_is_uninterrupted(world: Any, gradient_spec: Callable[..., TrialSpec]) -> None:
    spec = gradient_spec("1", learning_rate=3e-4)
    half = world.lone(spec, 6)
    whole, resumed = world.lone(spec, 12), world.lone(spec, 12, Snapshot.from_bytes(half.to_bytes()))
    assert all(torch.equal(resumed.parameters[name], value) for name, value in whole.parameters.items())


def test_heads_that_train_their_output_alone(make_world: Callable[..., Any]) -> None:
    world = make_world("roberta")
    make, pack = _maker(world), world.pack()
    specs = [make("1", head="output", learning_rate=2e-4), make("2", learning_rate=2e-4)]
    assert len({spec.hyperparameters.factor_set for spec in specs}) == 2, "another head passes another gradient"
    slots = world.join(pack, specs)
    for _ in range(10):
        assert pack.step(slots) == {}
    world.check_each_is_as_alone(pack, slots, 10, TOLERANCE)


# ---- stored ----------------------------------------------------------------------------------------------------------
def test_a_stored_adapter_needs_no_asset(
    world: Any, gradient_spec: Callable[..., TrialSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, method = gradient_spec("1", learning_rate=3e-4), get_method("lora-xs")
    model = attach(world.model, spec)
    run = TrialRun(spec, model, world.data, torch.device("cpu"))
    run.advance(5)
    batch = world.data.collate("validation", range(8))
    with torch.no_grad():
        expected = model(**batch.inputs).logits
    files = method.files(model, ())
    detach(model, spec)
    names = {name.rpartition(".")[2] for name in load(files["adapter_model.safetensors"])}
    assert {"loraxs_R", "loraxs_A", "loraxs_B"} < names
    assert json.loads(files["adapter_config.json"])["basis"] == "gradient"
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "another-home"))
    loaded = method.load(load_model(world.base, classifier(2)), folder, "cpu").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch.inputs).logits, expected, rtol=1e-5, atol=1e-6)
    assert list(method.factors(spec.hyperparameters, {world.names[0]: (32, 32)})) == []


# ---- a real base and real rows ---------------------------------------------------------------------------------------
def test_film_reviews_start_below_the_untouched_bases_loss(quickstart: Any) -> None:
    """On the 48 rows of the estimate MiniLM's loss is lower before the first step, by a hundredth at least."""
    world = quickstart
    spec = _maker(world, num_rows=48)("1", learning_rate=3e-3, target_modules=tuple(world.names))
    batches = TrainingBatches(world.data.lengths("train"), 16, 5)
    rows = [world.data.collate("train", batches.at(step)) for step in range(3)]

    def loss(trial: TrialSpec) -> float:
        model = attach(world.model, trial)
        with torch.no_grad():
            values = [world.data.kind.loss(forward_batch(model, batch), batch) for batch in rows]
        detach(model, trial)
        return float(torch.cat(values).mean())

    assert loss(spec) < loss(world.spec("9", seed=5, init_std=0.0)) - 0.01
