from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest
import torch

from loraxs_search.base_model import head_names, head_shapes, linear_modules, load_model
from loraxs_search.errors import BaseModelError
from loraxs_search.tasks.kinds import classifier, regressor

# Module path of layer 0 to (in, out), for hidden size 16 and intermediate size 32.
LAYER_0 = {
    "bert": {
        "bert.encoder.layer.0.attention.self.query": (16, 16),
        "bert.encoder.layer.0.attention.self.key": (16, 16),
        "bert.encoder.layer.0.attention.self.value": (16, 16),
        "bert.encoder.layer.0.attention.output.dense": (16, 16),
        "bert.encoder.layer.0.intermediate.dense": (16, 32),
        "bert.encoder.layer.0.output.dense": (32, 16),
    },
    "roberta": {
        "roberta.encoder.layer.0.attention.self.query": (16, 16),
        "roberta.encoder.layer.0.attention.self.key": (16, 16),
        "roberta.encoder.layer.0.attention.self.value": (16, 16),
        "roberta.encoder.layer.0.attention.output.dense": (16, 16),
        "roberta.encoder.layer.0.intermediate.dense": (16, 32),
        "roberta.encoder.layer.0.output.dense": (32, 16),
    },
    "distilbert": {
        "distilbert.transformer.layer.0.attention.q_lin": (16, 16),
        "distilbert.transformer.layer.0.attention.k_lin": (16, 16),
        "distilbert.transformer.layer.0.attention.v_lin": (16, 16),
        "distilbert.transformer.layer.0.attention.out_lin": (16, 16),
        "distilbert.transformer.layer.0.ffn.lin1": (16, 32),
        "distilbert.transformer.layer.0.ffn.lin2": (32, 16),
    },
    "deberta": {
        "deberta.encoder.layer.0.attention.self.query_proj": (16, 16),
        "deberta.encoder.layer.0.attention.self.key_proj": (16, 16),
        "deberta.encoder.layer.0.attention.self.value_proj": (16, 16),
        "deberta.encoder.layer.0.attention.self.pos_key_proj": (16, 16),
        "deberta.encoder.layer.0.attention.output.dense": (16, 16),
        "deberta.encoder.layer.0.intermediate.dense": (16, 32),
        "deberta.encoder.layer.0.output.dense": (32, 16),
    },
    "gpt2": {
        "transformer.h.0.attn.c_attn": (16, 48),
        "transformer.h.0.attn.c_proj": (16, 16),
        "transformer.h.0.mlp.c_fc": (16, 64),
        "transformer.h.0.mlp.c_proj": (64, 16),
    },
    "llama": {
        "model.layers.0.self_attn.q_proj": (16, 16),
        "model.layers.0.self_attn.k_proj": (16, 8),
        "model.layers.0.self_attn.v_proj": (16, 8),
        "model.layers.0.self_attn.o_proj": (16, 16),
        "model.layers.0.mlp.gate_proj": (16, 32),
        "model.layers.0.mlp.up_proj": (16, 32),
        "model.layers.0.mlp.down_proj": (32, 16),
    },
    "modernbert": {
        "model.layers.0.attn.Wqkv": (16, 48),
        "model.layers.0.attn.Wo": (16, 16),
        "model.layers.0.mlp.Wi": (16, 64),
        "model.layers.0.mlp.Wo": (32, 16),
    },
}


def test_layers_of_each_family(make_base, family):
    found = linear_modules(make_base(family), classifier(3))
    sizes = {module.name: (module.in_features, module.out_features) for module in found}
    layer_1 = {name.replace(".0.", ".1."): size for name, size in LAYER_0[family].items()}
    assert sizes == LAYER_0[family] | layer_1


def test_names_and_sizes_are_those_of_the_loaded_model(make_base, family):
    base = make_base(family)
    model = load_model(base, classifier(3))
    for module in linear_modules(base, classifier(3)):
        x = torch.zeros(1, 1, module.in_features)
        assert model.get_submodule(module.name)(x).shape[-1] == module.out_features


def num_head_parameters(base, model):
    return sum(map(prod, head_shapes(base, model).values()))


def test_head_size_is_that_of_the_loaded_model(make_base, family):
    base = make_base(family)
    model = load_model(base, classifier(3))
    loaded = [p.numel() for n, p in model.named_parameters() if n.split(".")[0] in head_names(model)]
    assert num_head_parameters(base, classifier(3)) == sum(loaded)


def test_head_size_by_hand(quickstart):
    assert num_head_parameters(quickstart, classifier(2)) == 384 * 2 + 2
    assert num_head_parameters(quickstart, regressor()) == 384 + 1


def test_no_weights_are_read(make_base):
    base = make_base("bert")
    before = linear_modules(base, regressor())
    (Path(base.path) / "model.safetensors").unlink()
    assert linear_modules(base, regressor()) == before


def test_quickstart_has_six_linears_in_six_layers(quickstart):
    assert len(linear_modules(quickstart, classifier(2))) == 36


def test_unknown_architecture_is_a_clear_error(make_base):
    base = make_base("bert")
    (Path(base.path) / "config.json").write_text(json.dumps({"model_type": "nonesuch"}))
    with pytest.raises(BaseModelError, match="nonesuch"):
        linear_modules(base, classifier(2))


def test_model_without_a_classification_head_is_a_clear_error(make_base):
    base = make_base("bert")
    (Path(base.path) / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(BaseModelError, match="AutoModelForSequenceClassification"):
        linear_modules(base, classifier(2))


def test_head_shapes_are_those_that_are_trained(make_base, family):
    base = make_base(family)
    full = head_shapes(base, classifier(3))
    output = head_shapes(base, classifier(3), "output")
    assert sum(map(prod, full.values())) == num_head_parameters(base, classifier(3))
    assert all(shape[0] == 3 for shape in output.values())
    assert set(output) <= set(full)
    assert (output != full) is (family in ("roberta", "distilbert", "deberta", "modernbert"))
