"""Bases as they are loaded: their layers, heads and tokenizers, and what identifies one beside its weights."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bases import (
    BERT,
    CHAT,
    DECODERS,
    GEMMA2,
    SMOLLM,
    characters,
    families,
    language_model,
    save_language_model,
)
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    CohereConfig,
    GraniteConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from loraxs_search.base_model.layers import fresh_head, head_names, linear_modules, parameter_shapes
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.reading import Projection, last_states
from loraxs_search.base_model.tokenizer import _digest, load_tokenizer, with_setup
from loraxs_search.errors import BaseModelError
from loraxs_search.records.task import BaseModelRef, TaskModel
from loraxs_search.tasks.kinds import classifier


def edit_weights(base, change) -> None:
    path = Path(base.path) / "model.safetensors"
    state = load_file(path)
    save_file({name: value for name, old in state.items() if (value := change(name, old)) is not None}, path)


def edit_config(base, file: str = "config.json", **changes: Any) -> None:
    path = Path(base.path) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_model_is_frozen_in_evaluation_mode_with_float32_head(make_base, family):
    model = load_model(make_base(family), classifier(3), dtype=torch.bfloat16)
    assert not model.training
    assert model.config._attn_implementation == "eager"  # on a CPU
    assert not any(parameter.requires_grad for parameter in model.parameters())
    heads = {name.split(".")[0] for name, _ in model.named_parameters()} - {model.base_model_prefix}
    assert set(head_names(model)) == heads
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name.split(".")[0] in heads else torch.bfloat16), name


@pytest.mark.parametrize(
    ("own", "is_fast", "held"),
    [
        (torch.bfloat16, True, torch.bfloat16),
        (torch.bfloat16, False, torch.float32),
        (torch.float16, True, torch.float32),
        (torch.float32, True, torch.float32),
    ],
)
def test_dtype_none_is_the_checkpoints_own_or_float32_where_a_cpu_would_emulate_it(
    make_base, own, is_fast, held, monkeypatch
):
    monkeypatch.setattr("loraxs_search.base_model.load._has_bfloat16", lambda _: is_fast)
    base = make_base("bert")
    edit_weights(base, lambda _, value: value.to(own))
    edit_config(base, dtype=None)
    model, exact = load_model(base, classifier(2)), load_model(base, classifier(2), dtype=own)
    assert (model.dtype, model.config.dtype, exact.dtype) == (held, own, own)
    pairs = list(zip(model.parameters(), exact.parameters(), strict=True))
    assert pairs and all(torch.equal(one.float(), other.float()) for one, other in pairs), "the same weights"


def test_two_loads_are_equal_even_where_the_checkpoint_lacks_weights(make_base):
    base = make_base("bert")
    edit_weights(base, lambda name, value: None if "pooler" in name else value)
    first = load_model(base, classifier(2)).state_dict()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second = load_model(base, classifier(2)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_body_that_the_weights_do_not_cover_is_refused(make_base):
    missing, narrow = "layer.1.output.dense.weight", "word_embeddings"
    for match, change in (
        (rf"1 parameters.*{re.escape(missing)}", lambda name, value: None if missing in name else value),
        (narrow, lambda name, value: value[:, :8].contiguous() if narrow in name else value),
    ):
        base = make_base("bert")
        edit_weights(base, change)
        with pytest.raises(BaseModelError, match=match):
            load_model(base, classifier(2))
    (Path(base.path) / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"no header at all")
    with pytest.raises(BaseModelError, match="header"):
        load_model(base, classifier(2))


def test_a_checkpoint_with_a_head_for_other_labels_loads_without_a_word(make_base, capfd):
    base = make_base("bert")
    load_model(base, classifier(5)).save_pretrained(base.path)
    logging.set_verbosity_warning()
    capfd.readouterr()
    assert load_model(base, classifier(2)).classifier.out_features == 2
    load_tokenizer(base)
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == logging.WARNING
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoders_read_the_last_real_token(make_base, family):
    base = make_base(family)
    model, tokenizer = load_model(base, classifier(2)), load_tokenizer(base)
    assert (model.config.pad_token_id, tokenizer.pad_token_id) == (1, 1)
    texts = ["w3 w4 w5 w6", "w7 w8"]
    together = model(**tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")).logits
    alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(together, alone)


def test_tokenizer_pads_on_the_side_that_the_base_is_trained_with_by_the_models_token_and_is_there(make_base):
    """Whatever the checkpoint's own says: that of many decoders is made for generation."""
    base = make_base("gpt2")
    edit_config(base, "tokenizer_config.json", padding_side="left")
    assert load_tokenizer(base).padding_side == "right"
    edit_config(base, summary_type="last")
    assert load_tokenizer(base).padding_side == "left"
    base = make_base("llama")
    for given, used in ((5, 5), (-1, 1)):
        edit_config(base, pad_token_id=given)
        assert load_tokenizer(base).pad_token_id == load_model(base, classifier(2)).config.pad_token_id == used
    (Path(base.path) / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match="must hold a tokenizer"):
        load_tokenizer(base)


def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    made = {"plain": {}, "spaces": {"prepend": "always"}, "begins": {"begins": True}, "other end": {}, "left": {}}
    made |= {"chat": {"chat": CHAT}, "other chat": {"chat": CHAT + "."}}
    found = {name: characters(**own) for name, own in made.items()}
    found["other end"].eos_token = "<|end|>"
    found["left"].truncation_side = "left"
    return found


def test_a_digest_is_of_what_a_tokenizer_does(tmp_path, capfd):
    digests = {name: _digest(tokenizer) for name, tokenizer in tokenizers().items()}
    assert len(set(digests.values())) == len(digests)
    for name, tokenizer in tokenizers().items():
        tokenizer(["a" * 9], truncation=True, max_length=5, padding="max_length")  # leaves its settings behind
        tokenizer.save_pretrained(tmp_path / name)
        again = AutoTokenizer.from_pretrained(tmp_path / name, model_max_length=16)
        assert _digest(again) == digests[name]
    assert capfd.readouterr().err == ""
    assert digests["plain"] == "6867a832f2870ad9ef88386c5a72727f4d02e88cb5164b297614b022d718a3bb"


def test_what_differs_is_named_with_both_values(make_base):
    base = with_setup(make_base("llama"))
    assert base.setup is not None and with_setup(base) is base
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    edit_config(base, rms_norm_eps=1e-3, rope_parameters=rope, attention_dropout=0.5)
    other = with_setup(locate(BaseModelRef(base.path)))
    assert other.weight_digest == base.weight_digest and other.setup is not None
    assert base.setup.difference(base.setup) == ""
    assert base.setup.difference(other.setup) == (
        '`rms_norm_eps` 0.001, not 1e-06 and `rope_parameters.rope_type` "linear", not "default"'
    )
    newer = replace(base.setup, config={**base.setup.config, "of_a_newer_version": 1.0})
    assert base.setup.difference(newer) == newer.difference(base.setup) == ""


# ---- layers ----------------------------------------------------------------------------------------------------------
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
    assert (output != full) is (family in ("roberta", "distilbert", "deberta-v2", "modernbert"))


def test_no_weights_are_read_and_what_transformers_has_not_is_a_clear_error(make_base):
    base = make_base("bert")
    before = linear_modules(base, classifier(1, problem_type="regression"))
    (Path(base.path) / "model.safetensors").unlink()
    assert linear_modules(base, classifier(1, problem_type="regression")) == before
    for model_type, said in (("nonesuch", "nonesuch"), ("clip_vision_model", "AutoModelForSequenceClassification")):
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


# ---- language models -------------------------------------------------------------------------------------------------
LANGUAGE_MODEL = TaskModel("AutoModelForCausalLM")
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
IDS = torch.arange(3, 43).view(2, 20)  # rows longer than any window
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
SHAPE = {"vocab_size": 259, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"num_hidden_layers": 2, "intermediate_size": 48, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


@pytest.fixture(params=families(DECODERS))
def decoder(request, tmp_path):
    return locate(BaseModelRef(id=str(save_language_model(tmp_path / "m", DECODERS[request.param]))))


def test_all_seven_linears_of_each_layer_can_be_adapted(decoder):
    names = [module.name for module in linear_modules(decoder, LANGUAGE_MODEL)]
    for layer in (0, 1):
        assert {name.rpartition(".")[2] for name in names if f".layers.{layer}." in name} == SEVEN
    assert len(names) == 14
    model = load_model(decoder, LANGUAGE_MODEL)
    assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in names)
    limit = model.config.max_position_embeddings
    assert load_tokenizer(decoder).model_max_length == limit, "without a limit of its own"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projection_makes_the_models_own_logits(decoder, dtype):
    model = load_model(decoder, LANGUAGE_MODEL, dtype=dtype)
    expected = model(**INPUTS).logits.float()
    limits = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(Projection(model)(last_states(model, INPUTS)), expected, **limits)


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
    states, expected = last_states(model, INPUTS), model(**INPUTS).logits
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
