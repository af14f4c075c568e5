"""The exported LoRA folder is plain PEFT and the same function."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.conversion import convert_to_lora
from safetensors.torch import load_file

from loraxs_search.errors import HomeError
from loraxs_search.methods.export.lora import write_plain_lora
from loraxs_search.methods.lora_xs import LoraXS


def test_ranks_and_scales_of_their_own_are_kept(adapt, make_base, inputs, logits, tmp_path):
    own = {"scale": 0.5, "scale_pattern": {"value": 3.0}, "sigma": "sqrt"}
    model = adapt(rank_pattern={"query": 2, "0.output.dense": 7}, **own)
    write_plain_lora(LoraXS().plain_lora(model), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    ranks = {
        key.split(".layer.")[1]: value.shape[0]
        for key, value in tensors.items()
        if "encoder" in key and "lora_A" in key
    }
    assert ranks["1.attention.self.query.lora_A.weight"] == 2
    assert ranks["0.output.dense.lora_A.weight"] == 7
    assert ranks["1.output.dense.lora_A.weight"] == 4
    lora = PeftModel.from_pretrained(make_base(), str(tmp_path))
    torch.testing.assert_close(logits(lora, inputs), logits(model, inputs), atol=1e-6, rtol=1e-5)


def test_the_folder_names_nothing_of_ours(adapt, tmp_path):
    write_plain_lora(LoraXS().plain_lora(adapt("roberta")), tmp_path / "new" / "folder")
    config = json.loads((tmp_path / "new" / "folder" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    keys = load_file(tmp_path / "new" / "folder" / "adapter_model.safetensors").keys()
    assert {key.split(".")[-2] for key in keys if "encoder" in key} == {"lora_A", "lora_B"}
    assert "base_model.model.classifier.out_proj.weight" in keys


def test_petfs_own_converter_accepts_the_model(adapt):
    config, tensors = convert_to_lora(adapt("gpt2"), rank=4)
    assert config.r == 4
    assert any(key.endswith("lora_B.weight") for key in tensors)


def test_a_bad_folder_is_named(adapt, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HomeError, match="must be writable"):
        write_plain_lora(LoraXS().plain_lora(adapt(target_modules=["query"])), tmp_path / "file" / "lora")
