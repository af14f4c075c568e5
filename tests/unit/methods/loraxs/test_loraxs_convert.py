"""The exported LoRA folder is plain PEFT and the same function."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora.conversion import convert_to_lora
from safetensors.torch import load_file

from loraxs_search.errors import HomeError, UsageError
from loraxs_search.methods.loraxs import export_lora


def test_the_exported_adapter_gives_the_same_logits(adapt, make_base, family, inputs, logits, tmp_path):
    model = adapt(family, scale=0.5, scale_pattern={"value": 3.0}, sigma="sqrt")
    expected = logits(model, inputs)
    export_lora(model, "default", tmp_path)
    assert type(PeftConfig.from_pretrained(str(tmp_path))) is LoraConfig
    lora = PeftModel.from_pretrained(make_base(family), str(tmp_path))
    torch.testing.assert_close(logits(lora, inputs), expected, atol=1e-6, rtol=1e-5)


def test_ranks_of_their_own_are_kept(adapt, make_base, inputs, logits, tmp_path):
    model = adapt(rank_pattern={"query": 2, "0.output.dense": 7})
    model.add_adapter(
        "mine", model.peft_config["default"].__class__(r=3, target_modules=["value"], task_type="SEQ_CLS")
    )
    export_lora(model, "default", tmp_path)
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
    export_lora(adapt("roberta"), "default", tmp_path / "new" / "folder")
    config = json.loads((tmp_path / "new" / "folder" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    keys = load_file(tmp_path / "new" / "folder" / "adapter_model.safetensors").keys()
    assert {key.split(".")[-2] for key in keys if "encoder" in key} == {"lora_A", "lora_B"}
    assert "base_model.model.classifier.out_proj.weight" in keys


def test_petfs_own_converter_accepts_the_model(adapt):
    config, tensors = convert_to_lora(adapt("gpt2"), rank=4)
    assert config.r == 4
    assert any(key.endswith("lora_B.weight") for key in tensors)


def test_an_unknown_adapter_and_a_bad_folder_are_named(adapt, tmp_path):
    model = adapt(target_modules=["query"])
    with pytest.raises(UsageError, match="default"):
        export_lora(model, "defualt", tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HomeError, match="must be writable"):
        export_lora(model, "default", tmp_path / "file" / "lora")
