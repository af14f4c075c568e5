"""An adapter goes on the very base it was trained on, also where PEFT alone loads it; all below the head counts."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

from loraxs_search.errors import BaseModelError
from loraxs_search.methods.loraxs import LoraXSConfig
from loraxs_search.methods.verification import body_fingerprint, check_body

CHANGED = {
    "bert": ["embeddings.word_embeddings.weight", "encoder.layer.1.output.LayerNorm.weight"],
    "roberta": ["encoder.layer.0.intermediate.dense.bias", "encoder.layer.1.attention.self.key.weight"],
    "gpt2": ["wpe.weight", "h.1.mlp.c_fc.bias"],
    "llama": ["embed_tokens.weight", "layers.1.mlp.up_proj.weight"],
}
TARGET = {"bert": "query", "roberta": "query", "gpt2": "c_attn", "llama": "q_proj"}


@pytest.fixture
def saved(adapt, family, make_base, tmp_path):
    model = adapt(family, target_modules=[TARGET[family]])
    model.active_peft_config.body_fingerprint = list(body_fingerprint(make_base(family)))
    model.save_pretrained(str(tmp_path))
    return str(tmp_path)


def test_the_same_base_is_taken_whatever_its_head(saved, family, make_base):
    base = make_base(family)
    for name, parameter in base.named_parameters():
        if not name.startswith(base.base_model_prefix):
            parameter.data.zero_()
    PeftModel.from_pretrained(base, saved)


def test_another_one_is_refused_and_left_as_it_was(saved, family, make_base, layers):
    for changed in CHANGED[family]:
        base = make_base(family)
        base.base_model.get_parameter(changed).data.flatten()[::7] += 0.01
        with pytest.raises(BaseModelError, match="fingerprint"):
            PeftModel.from_pretrained(base, saved)
        assert not any(layer.settings for layer in layers(base).values())


def test_adapters_that_are_there_already_do_not_count(saved, family, make_base, layers):
    model = get_peft_model(make_base(family), LoraXSConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    model.load_adapter(saved, "second")
    assert any("second" in layer.settings for layer in layers(model).values())
    assert model.peft_config["second"].body_fingerprint == list(body_fingerprint(make_base(family)))


def test_precision_counts_as_little_as_its_rounding(saved, family, make_base):
    base = make_base(family)
    for parameter in base.parameters():  # as a checkpoint in bfloat16 holds them
        parameter.data = parameter.data.bfloat16().float()
    assert body_fingerprint(base.bfloat16()) == body_fingerprint(base.float())
    assert body_fingerprint(make_base(family).bfloat16()) == pytest.approx(body_fingerprint(make_base(family)))
    expected = LoraXSConfig.from_pretrained(saved).body_fingerprint
    check_body(expected, make_base(family).half())
    with pytest.raises(BaseModelError, match="body must have"):
        check_body(expected, make_base(family, seed=1).half())


def test_every_column_of_a_large_weight_is_read_and_an_empty_one_is_no_trouble():
    model = torch.nn.Module()
    model.large = torch.nn.Parameter(torch.ones(4096, 64))
    model.none = torch.nn.Parameter(torch.empty(0))
    before = body_fingerprint(model)
    for column in range(64):
        model.large.data[:, column] = 2.0
        assert body_fingerprint(model) != before, column
        model.large.data[:, column] = 1.0
    assert body_fingerprint(model) == before
