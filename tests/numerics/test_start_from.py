"""`start_from`: a trial begins at another adapter's function, at its rank or a larger one, alone and packed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.sealed import manifest_of
from support.trials import train as train_slots
from support.trials import unpacked
from torch import Tensor

from loraxs_search import assets
from loraxs_search.assets import START
from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.methods import get_method
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.trial import TrialSpec
from loraxs_search.trial.attach import attach, detach

LORA_XS = get_method("lora-xs")


def logits(world: Any, model: Any) -> Tensor:
    batch = world.data.collate("validation", range(8))
    with torch.no_grad():
        return model(**batch.inputs).logits


@pytest.fixture
def learnt(world, tmp_path):
    """Train an adapter of rank 4; return its trial, the study's assets made of it, and its logits."""

    def train(*, with_head: bool = True, **changes: Any) -> tuple[TrialSpec, dict[str, str], Tensor]:
        spec = world.spec("7", scale=2.0, **changes)
        pack = unpacked(world.model, world.factors)
        train_slots(pack, [pack.join(spec, world.data)], 12)
        expected, files = logits(world, pack.base.model), LORA_XS.files(pack.base.model, ())
        pack.base.clear()
        folder = tmp_path / "learnt"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        manifest = manifest_of(world.data.task, BaseModelRef("base"), spec.hyperparameters, "7")
        return spec, {START: assets.keep(LORA_XS.start_asset(folder, manifest, with_head=with_head))}, expected

    return train


def starting(world: Any, trial_id: str, known: dict[str, str], **changes: Any) -> TrialSpec:
    spec = world.spec(trial_id, **changes)
    return replace(spec, hyperparameters=replace(spec.hyperparameters, start_from=known.get(START)))


def test_a_trial_begins_at_the_others_function(world, learnt):
    _, known, expected = learnt()
    for changes in ({}, {"rank": 6, "scale": 3.0, "seed": 99}):
        with world.attached(starting(world, "1", known, **{"scale": 2.0, **changes})) as model:
            torch.testing.assert_close(logits(world, model), expected, rtol=1e-5, atol=1e-6)


def test_without_the_head_r_alone_is_continued(world, learnt):
    _, known, _ = learnt(with_head=False)
    spec, anew = starting(world, "1", known, rank=8), world.spec("1", rank=8)
    with use_factor_store(world.factors):
        model = attach(world.model, spec)
        state = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        detach(model, spec)
        fresh = attach(world.model, anew)
    for name, value in fresh.named_parameters():
        if value.requires_grad:
            is_head = ".modules_to_save." in name
            assert torch.equal(state[name], value) == is_head, name
            assert is_head or (state[name][4:] == 0).all()
    detach(fresh, anew)


def test_layers_that_the_other_lacks_start_as_always(world, learnt):
    some = tuple(world.names[1::2])
    _, known, expected = learnt(target_modules=some)
    spec = starting(world, "1", known, scale=2.0, init_std=0.0)
    with world.attached(spec) as model:
        torch.testing.assert_close(logits(world, model), expected, rtol=1e-5, atol=1e-6)


def test_packed_with_others_they_equal_lone_trials(world, learnt):
    (_, whole, _), (_, without_head, _) = learnt(), learnt(with_head=False)
    specs = [
        starting(world, "11", whole, rank=8, scale=0.5),
        starting(world, "12", without_head, learning_rate=5e-3),
        *world.mixed_specs()[:3],
    ]
    world.check_law([(spec, world.data) for spec in specs])


def test_a_smaller_rank_is_refused_on_both_ways(world, learnt):
    _, known, _ = learnt()
    spec, pack = starting(world, "1", known, rank=3), world.pack()
    with pytest.raises(UsageError, match=r"`rank`.* 4, .* 3"):
        world.lone(spec, 1)
    with pytest.raises(UsageError):
        world.join(pack, [spec])


def test_other_factors_are_refused_to_this_trial_alone(world, learnt, monkeypatch):
    """A machine whose singular vectors differ would take R for another function."""
    _, known, _ = learnt()
    spec, pack = starting(world, "1", known), world.pack()
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
