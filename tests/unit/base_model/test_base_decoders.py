"""Language models of the builds that people fine-tune: loaded, listed and projected as their own code does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.bases import BERT, DECODERS, GEMMA2, SMOLLM, language_model, save_language_model
from support.families import families
from transformers import AutoModel, CohereConfig, GraniteConfig, LlamaForCausalLM

from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.reading import Projection, last_states
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.errors import BaseModelError
from loraxs_search.records.task import BaseModelRef, TaskModel

LANGUAGE_MODEL = TaskModel("AutoModelForCausalLM")
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
IDS = torch.arange(3, 43).view(2, 20)  # rows longer than any window
SHAPE = {"vocab_size": 259, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"num_hidden_layers": 2, "intermediate_size": 48, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


@pytest.fixture(params=families(DECODERS))
def base(request, tmp_path):
    return locate(BaseModelRef(id=str(save_language_model(tmp_path / "m", DECODERS[request.param]))))


def test_all_seven_linears_of_each_layer_can_be_adapted(base):
    names = [module.name for module in linear_modules(base, LANGUAGE_MODEL)]
    for layer in (0, 1):
        assert {name.rpartition(".")[2] for name in names if f".layers.{layer}." in name} == SEVEN
    assert len(names) == 14
    loaded = dict(load_model(base, LANGUAGE_MODEL).named_modules())
    assert all(isinstance(loaded[name], torch.nn.Linear) for name in names)
    assert load_tokenizer(base).model_max_length == SMOLLM.max_position_embeddings, "without a limit of its own"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projection_makes_the_models_own_logits(base, dtype):
    model = load_model(base, LANGUAGE_MODEL, dtype=dtype)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    expected = model(**inputs).logits.float()
    limits = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(Projection(model)(last_states(model, inputs)), expected, **limits)


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (CohereConfig(**SHAPE, logit_scale=0.125), "logit_scale", 1.0),
        (GraniteConfig(**SHAPE, logits_scaling=8.0), "logits_scaling", 1.0),
        (GEMMA2, "final_logit_softcapping", None),
    ],
)
def test_what_a_configuration_does_to_logits_is_done(config, name, value):
    model = language_model(config)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    states, expected = last_states(model, inputs), model(**inputs).logits
    torch.testing.assert_close(Projection(model)(states), expected, rtol=1e-5, atol=1e-5)
    setattr(model.config, name, value)
    assert not torch.allclose(Projection(model)(states), expected, rtol=0.1)


def test_a_base_that_makes_logits_in_a_way_of_its_own_is_refused(tmp_path, monkeypatch):
    base, own = locate(BaseModelRef(id=str(save_language_model(tmp_path / "m", SMOLLM)))), LlamaForCausalLM.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        outputs = own(*args, **kwargs)
        outputs.logits = outputs.logits * 2
        return outputs

    monkeypatch.setattr(LlamaForCausalLM, "forward", doubled)
    with pytest.raises(BaseModelError, match="LlamaForCausalLM makes them in another way"):
        load_model(base, LANGUAGE_MODEL)


def test_an_encoder_is_no_language_model(tmp_path):
    AutoModel.from_config(BERT).save_pretrained(tmp_path / "m")
    base = locate(BaseModelRef(str(tmp_path / "m")))
    for use in (linear_modules, load_model):
        with pytest.raises(BaseModelError, match="encoder") as error:
            use(base, LANGUAGE_MODEL)
        assert "choose a decoder" in error.value.hint
