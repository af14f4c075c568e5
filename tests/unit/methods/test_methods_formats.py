"""An adapter folder in other forms: the same function to tools that know nothing of LoRA-XS."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from loraxs_search.errors import UsageError
from loraxs_search.methods import LoraXS
from loraxs_search.methods.formats import converted
from loraxs_search.methods.loading import load_adapter_folder


@pytest.fixture(params=["bert", "roberta", "roberta, output alone"])
def sealed(request, adapt, make_base, tmp_path, write_adapter, save_base):
    """An adapter folder on a saved base, with its base; the last kind trains the output layer of its head alone."""
    family = request.param.split(",")[0]
    base = save_base(make_base(family), tmp_path / "base")
    words = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(tmp_path / "base")
    only = {"modules_to_save": ["classifier.out_proj"], "pass_through": ["classifier.dense"], "task_type": None}
    model = adapt(family, target_modules=["query", "output.dense"], **(only if "output" in request.param else {}))
    write_adapter(model, base, tmp_path / "adapter")
    return tmp_path / "adapter", base


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_stock_libraries_give_the_same_logits(sealed, form, inputs, logits, tmp_path):
    folder, base = sealed
    expected = logits(load_adapter_folder(folder, base=base), inputs)
    made = converted(folder, form, **({"rank": 8} if form == "lora" else {}))
    load = AutoModelForSequenceClassification.from_pretrained
    torch.manual_seed(11)  # whatever is drawn for a head must not show
    plain = PeftModel.from_pretrained(load(base.path), made).eval() if form == "lora" else load(made)
    torch.testing.assert_close(logits(plain, inputs), expected, atol=1e-5, rtol=1e-4)


def test_the_lora_folder_is_what_a_server_looks_for(sealed):
    folder, base = sealed
    made = converted(folder, "lora", rank=8)
    config = json.loads((made / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", base.id)
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (8, 8, {})
    tensors = load_file(made / "adapter_model.safetensors")
    ranks = {(v.shape[0] if "lora_A" in k else v.shape[1]) for k, v in tensors.items() if ".lora_" in k}
    assert ranks == {8}


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_it_says_the_names_of_the_labels(sealed, form):
    """A LoRA folder must not hold a config.json: transformers would look for the base's weights beside it."""
    made = converted(sealed[0], form)
    if form == "merged":
        config = AutoConfig.from_pretrained(made)
        assert (config.id2label, config.label2id) == ({0: "no", 1: "yes"}, {"no": 0, "yes": 1})
        return
    assert {path.name for path in made.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    (code,) = re.findall(r"```python\n(.*?)```", (made / "README.md").read_text(), flags=re.S)
    assert "loraxs_search" not in code
    assert 'labels = ["no", "yes"]' in code  # tests/numerics/test_adapter_equivalence.py runs it


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_nothing_is_said_of_it(sealed, form, capfd):
    capfd.readouterr()
    converted(sealed[0], form)
    assert capfd.readouterr() == ("", "")


def test_it_is_made_once_and_again_when_it_was_changed(sealed):
    folder, _ = sealed
    made = converted(folder, "lora")
    inode = (made / "adapter_model.safetensors").stat().st_ino
    assert converted(folder, "lora") == made
    assert (made / "adapter_model.safetensors").stat().st_ino == inode
    whole = (made / "adapter_model.safetensors").read_bytes()
    (made / "adapter_model.safetensors").write_bytes(whole[:-1] + b"x")
    assert (converted(folder, "lora") / "adapter_model.safetensors").read_bytes() == whole
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_a_rank_below_its_own_or_for_a_merged_model_is_refused(sealed):
    folder, _ = sealed
    with pytest.raises(UsageError, match="`rank` must be at least"):
        converted(folder, "lora", rank=2)
    with pytest.raises(UsageError, match="--format lora"):
        converted(folder, "merged", rank=8)


@pytest.mark.parametrize("damage", [b"[not json", b"\xff\xfe", b"[]"])
def test_a_damaged_note_is_only_forgotten(sealed, damage):
    folder, _ = sealed
    made = converted(folder, "lora")
    whole = (made / "adapter_model.safetensors").read_bytes()
    made.with_name(f"{made.name}.json").write_bytes(damage)
    (made / "folder").mkdir()
    assert converted(folder, "lora") == made
    assert (made / "adapter_model.safetensors").read_bytes() == whole
    assert not (made / "folder").exists()


def test_of_several_at_once_one_makes_it_and_what_a_killed_one_left_goes(sealed, monkeypatch):
    folder, _ = sealed
    left = folder.with_name(f".{folder.name}.lora")
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"cut sho")
    calls = []
    convert = LoraXS.conversions["lora"]
    counted = {"lora": lambda *args: (calls.append(1), convert(*args))}
    monkeypatch.setattr(LoraXS, "conversions", counted)
    with ThreadPoolExecutor(4) as threads:
        made = set(threads.map(lambda _: converted(folder, "lora"), range(4)))
    assert made == {folder.with_name(f"{folder.name}.lora")}
    assert len(calls) == 1
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]
