"""The exported LoRA folder is plain PEFT and the same function."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora.conversion import convert_to_lora
from safetensors.torch import load_file, save_file

from loraxs_search.errors import HomeError, UsageError
from loraxs_search.methods.loraxs import export_lora

from ..conftest import FAMILIES


def test_the_exported_adapter_gives_the_same_logits(adapt, make_base, family, inputs, logits, tmp_path):
    model = adapt(family, scale=0.5, scale_pattern={"value": 3.0}, sigma="sqrt")
    expected = logits(model, inputs)
    export_lora(model, "default", tmp_path)
    assert type(PeftConfig.from_pretrained(str(tmp_path))) is LoraConfig
    lora = PeftModel.from_pretrained(make_base(family), str(tmp_path))
    torch.testing.assert_close(logits(lora, inputs), expected, atol=1e-6, rtol=1e-5)


STOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "loraxs_search":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import torch
from peft import PeftModel, PeftType
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

inputs, found = load_file("inputs.safetensors"), {}
for family in sys.argv[1:]:
    base = AutoModelForSequenceClassification.from_pretrained(f"base-{family}")
    model = PeftModel.from_pretrained(base, f"lora-{family}").eval()
    with torch.no_grad():
        found[family] = model(**inputs).logits
        found[f"{family} merged"] = model.merge_and_unload()(**inputs).logits
assert "loraxs_search" not in sys.modules and "LORAXS" not in PeftType.__members__
save_file(found, "logits.safetensors")
"""


def test_stock_peft_gives_the_same_logits_where_this_package_cannot_be_imported(
    adapt, make_base, inputs, logits, tmp_path
):
    expected = {}
    for family in FAMILIES:
        make_base(family).save_pretrained(str(tmp_path / f"base-{family}"))
        model = adapt(family, scale=0.5, sigma="output")
        export_lora(model, "default", tmp_path / f"lora-{family}")
        expected[family] = logits(model, inputs)
    save_file(inputs, tmp_path / "inputs.safetensors")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", STOCK, *FAMILIES]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "logits.safetensors")
    for family, value in expected.items():
        torch.testing.assert_close(found[family], value, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[f"{family} merged"], value, atol=1e-5, rtol=1e-5)


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
