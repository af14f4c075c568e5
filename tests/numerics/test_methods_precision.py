"""What a method takes from the base, or draws for it, is the same whatever precision trials run in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.trials import train, unpacked
from torch import Tensor

from loraxs_search.base_model.load import load_model
from loraxs_search.errors import BaseModelError
from loraxs_search.methods import get_method
from loraxs_search.records.trial import PeftSettings
from loraxs_search.tasks.kinds import classifier
from loraxs_search.trial.attach import attach, detach
from loraxs_search.trial.snapshot import Snapshot

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
