"""What identifies a base beside its weights: what its tokenizer does, and the numbers of its configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.characters import CHAT, characters
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from loraxs_search.base_model.layers import head_names
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import _digest, load_tokenizer, with_setup
from loraxs_search.errors import BaseModelError
from loraxs_search.records.task import BaseModelRef
from loraxs_search.tasks.kinds import classifier


def inputs() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0]]),
    }


def edit_weights(base, change) -> None:
    path = Path(base.path) / "model.safetensors"
    state = load_file(path)
    save_file({name: value for name, old in state.items() if (value := change(name, old)) is not None}, path)


def test_model_is_frozen_in_evaluation_mode_with_float32_head(make_base, family):
    model = load_model(make_base(family), classifier(3), dtype=torch.bfloat16)
    assert not model.training
    assert model.config._attn_implementation == "eager"  # on a CPU
    assert not any(parameter.requires_grad for parameter in model.parameters())
    heads = {name.split(".")[0] for name, _ in model.named_parameters()} - {model.base_model_prefix}
    assert set(head_names(model)) == heads
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name.split(".")[0] in heads else torch.bfloat16), name


def test_dtype_none_is_the_checkpoints_own(make_base):
    base = make_base("bert")
    edit_weights(base, lambda _, value: value.bfloat16())
    config = json.loads((Path(base.path) / "config.json").read_text())
    (Path(base.path) / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "dtype" not in k}))
    assert load_model(base, classifier(2)).dtype == torch.bfloat16


def test_two_loads_are_equal_even_where_the_checkpoint_lacks_weights(make_base):
    base = make_base("bert")
    edit_weights(base, lambda name, value: None if "pooler" in name else value)
    first = load_model(base, classifier(2)).state_dict()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second = load_model(base, classifier(2)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda name, value: None if "layer.1.output.dense.weight" in name else value,
            r"1 parameters.*layer\.1\.output\.dense\.weight",
        ),
        (lambda name, value: value[:, :8].contiguous() if "word_embeddings" in name else value, "word_embeddings"),
    ],
    ids=["missing", "of another shape"],
)
def test_a_body_that_the_weights_do_not_cover_is_refused(make_base, change, match):
    base = make_base("bert")
    edit_weights(base, change)
    with pytest.raises(BaseModelError, match=match):
        load_model(base, classifier(2))
    (Path(base.path) / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"no header at all")
    with pytest.raises(BaseModelError, match="header"):
        load_model(base, classifier(2))


def test_checkpoint_with_a_head_for_other_labels_loads(make_base, tmp_path):
    base = make_base("bert")
    load_model(base, classifier(5)).save_pretrained(base.path)
    assert load_model(base, classifier(2))(**inputs()).logits.shape == (2, 2)


def test_loading_says_nothing_and_leaves_verbosity(make_base, capfd):
    base = make_base("bert")
    logging.set_verbosity_warning()
    capfd.readouterr()
    load_model(base, classifier(2))
    load_tokenizer(base)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
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


def test_tokenizer_pads_on_the_side_that_the_base_is_trained_with(make_base):
    """Whatever the checkpoint's own says: that of many decoders is made for generation."""
    base = make_base("gpt2")
    path = Path(base.path) / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))
    assert load_tokenizer(base).padding_side == "right"
    path = Path(base.path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "summary_type": "last"}))
    assert load_tokenizer(base).padding_side == "left"


def test_tokenizer_pads_with_the_models_token_and_is_there(make_base):
    base = make_base("llama")
    path = Path(base.path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": 5}))
    assert load_tokenizer(base).pad_token_id == load_model(base, classifier(2)).config.pad_token_id == 5
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": -1}))
    assert load_tokenizer(base).pad_token_id == load_model(base, classifier(2)).config.pad_token_id == 1
    (Path(base.path) / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match="must hold a tokenizer"):
        load_tokenizer(base)


def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    other_end, left = characters(), characters()
    left.truncation_side = "left"
    other_end.eos_token = "<|end|>"
    return {
        "plain": characters(),
        "spaces": characters(prepend="always"),
        "begins": characters(begins=True),
        "chat": characters(chat=CHAT),
        "other chat": characters(chat=CHAT + "."),
        "other end": other_end,
        "left": left,
    }


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
    path = Path(base.path) / "config.json"
    config = json.loads(path.read_text())
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    path.write_text(json.dumps(config | {"rms_norm_eps": 1e-3, "rope_parameters": rope, "attention_dropout": 0.5}))
    other = with_setup(locate(BaseModelRef(base.path)))
    assert other.weight_digest == base.weight_digest and other.setup is not None
    assert base.setup.difference(base.setup) == ""
    assert base.setup.difference(other.setup) == (
        '`rms_norm_eps` 0.001, not 1e-06 and `rope_parameters.rope_type` "linear", not "default"'
    )
    newer = replace(base.setup, config={**base.setup.config, "of_a_newer_version": 1.0})
    assert base.setup.difference(newer) == newer.difference(base.setup) == ""
