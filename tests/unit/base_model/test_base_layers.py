from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.layers import fresh_head, head_names, linear_modules, parameter_shapes
from loraxs_search.base_model.load import load_model
from loraxs_search.errors import BaseModelError
from loraxs_search.tasks.kinds import classifier


def test_layers_of_each_family_have_the_sizes_of_the_loaded_model(make_base, family):
    base = make_base(family)
    found, model = linear_modules(base, classifier(3)), load_model(base, classifier(3))
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    assert {module.name for module in found} == {name for name in linears if re.search(r"\.[01]\.", name)}
    for module in found:
        x = torch.zeros(1, 1, module.in_features)
        assert model.get_submodule(module.name)(x).shape[-1] == module.out_features


def test_head_shapes_are_those_that_are_trained(make_base, family):
    base = make_base(family)
    shapes, body = parameter_shapes(base, classifier(3))
    (full, output), model = (shapes["full"], shapes["output"]), load_model(base, classifier(3))
    heads = head_names(model)
    assert full == {n: tuple(p.shape) for n, p in model.named_parameters() if n.split(".")[0] in heads}
    assert all(shape[0] == 3 for shape in output.values())
    assert output.items() <= full.items()
    assert {**full, **body} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert (output != full) is (family in ("roberta", "distilbert", "deberta", "modernbert"))


def test_no_weights_are_read(make_base):
    base = make_base("bert")
    before = linear_modules(base, classifier(1, problem_type="regression"))
    (Path(base.path) / "model.safetensors").unlink()
    assert linear_modules(base, classifier(1, problem_type="regression")) == before


@pytest.mark.parametrize(
    ("model_type", "said"), [("nonesuch", "nonesuch"), ("clip_vision_model", "AutoModelForSequenceClassification")]
)
def test_what_transformers_has_not_is_a_clear_error(make_base, model_type, said):
    base = make_base("bert")
    (Path(base.path) / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(BaseModelError, match=said):
        linear_modules(base, classifier(2))


# ---- head ------------------------------------------------------------------------------------------------------------
def test_a_fresh_head_is_whole_follows_from_its_seed_and_touches_nothing(make_base, family):
    model = load_model(make_base(family), classifier(3))
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    first = fresh_head(model, 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(11)
    second, other = fresh_head(model, 7), fresh_head(model, 8)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert set(first) == {n for n, _ in model.named_parameters() if n.split(".")[0] in head_names(model)}
    assert all(value.dtype == torch.float32 for value in first.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_drawn_as_the_models_own_initialisation_does(make_base):
    bert = fresh_head(load_model(make_base("bert"), classifier(300)), 0)
    assert bert["classifier.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not bert["classifier.bias"].any()
    modern = fresh_head(load_model(make_base("modernbert"), classifier(300)), 0)
    cut = 0.880  # the standard deviation that is left of 1 when a normal is cut at twice it, ModernBERT's default
    assert modern["classifier.weight"].std().item() == pytest.approx(cut * 16**-0.5, rel=0.05)
    assert modern["head.dense.weight"].std().item() == pytest.approx(cut * 0.02 / math.sqrt(4), rel=0.2)
