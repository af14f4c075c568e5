from __future__ import annotations

import math

import pytest
import torch

from loraxs_search.base_model.layers import fresh_head, head_names
from loraxs_search.base_model.load import load_model
from loraxs_search.tasks.kinds import classifier


@pytest.fixture
def model(make_base, family):
    return load_model(make_base(family), classifier(3))


def test_same_seed_same_head_whatever_happened_before(model):
    torch.manual_seed(1)
    first = fresh_head(model, 7)
    torch.rand(11)
    second, other = fresh_head(model, 7), fresh_head(model, 8)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_fresh_head_has_all_head_parameters_and_touches_nothing(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    head = fresh_head(model, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(head) == {n for n, _ in model.named_parameters() if n.split(".")[0] in head_names(model)}
    assert all(value.dtype == torch.float32 for value in head.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_drawn_as_the_models_own_initialisation_does(make_base):
    bert = fresh_head(load_model(make_base("bert"), classifier(300)), 0)
    assert bert["classifier.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not bert["classifier.bias"].any()
    modern = fresh_head(load_model(make_base("modernbert"), classifier(300)), 0)
    cut = 0.880  # the standard deviation that is left of 1 when a normal is cut at twice it, ModernBERT's default
    assert modern["classifier.weight"].std().item() == pytest.approx(cut * 16**-0.5, rel=0.05)
    assert modern["head.dense.weight"].std().item() == pytest.approx(cut * 0.02 / math.sqrt(4), rel=0.2)
