"""What a method takes from the base, or draws for it, is the same whatever precision trials run in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from loraxs_search.base_model import load_model
from loraxs_search.methods import get_method
from loraxs_search.tasks.kinds import classifier
from loraxs_search.trial import attach, detach

METHODS: dict[str, dict[str, Any]] = {
    "vera": {"rank": 3},
    "tinylora": {"rank": 3, "vector_size": 4},
    "unilora": {"rank": 2, "vector_size": 16},
}


@pytest.mark.parametrize("name", METHODS)
def test_frozen_parts_are_those_of_the_checkpoint(name: str, make_world: Callable[..., Any]) -> None:
    world = make_world(dtype=torch.bfloat16)
    spec = world.spec("3", method=name, rank=0, **get_method(name).fields(METHODS[name], {}))
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
