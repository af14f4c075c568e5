from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from loraxs_search.base_model.layers import head_names, linear_modules, parameter_shapes
from loraxs_search.base_model.load import load_model
from loraxs_search.errors import BaseModelError
from loraxs_search.tasks.kinds import classifier

# Of each family: what stands before the number of a layer, and its linear layers.
BERT = (
    "attention.self.query attention.self.key attention.self.value attention.output.dense "
    "intermediate.dense output.dense"
)
LAYERS = {
    "bert": ("bert.encoder.layer", BERT),
    "roberta": ("roberta.encoder.layer", BERT),
    "distilbert": (
        "distilbert.transformer.layer",
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2",
    ),
    "deberta": (
        "deberta.encoder.layer",
        "attention.self.query_proj attention.self.key_proj attention.self.value_proj attention.self.pos_key_proj "
        "attention.output.dense intermediate.dense output.dense",
    ),
    "gpt2": ("transformer.h", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
    "llama": (
        "model.layers",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj",
    ),
    "modernbert": ("model.layers", "attn.Wqkv attn.Wo mlp.Wi mlp.Wo"),
}


def test_layers_of_each_family_have_the_sizes_of_the_loaded_model(make_base, family):
    base = make_base(family)
    found, model = linear_modules(base, classifier(3)), load_model(base, classifier(3))
    before, names = LAYERS[family]
    assert {module.name for module in found} == {f"{before}.{i}.{name}" for i in (0, 1) for name in names.split()}
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
