"""An adapter folder in other forms: the same function to tools that know nothing of LoRA-XS."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast, pipeline

from loraxs_search.base_model.locate import locate
from loraxs_search.errors import UsageError
from loraxs_search.methods.export._base import ExportOptions
from loraxs_search.methods.export.folder import FORMATS, converted
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.methods.loraxs import LoraXSConfig
from loraxs_search.records.task import BaseModelRef

TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2}, unk_token="[UNK]")), pad_token="[PAD]"
)


@pytest.fixture
def sealed(adapt, make_base, tmp_path, write_adapter, save_base):
    """An adapter folder on a saved base, with its base."""
    base = save_base(make_base(), tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    write_adapter(adapt(target_modules=["query", "output.dense"]), base, tmp_path / "adapter")
    return tmp_path / "adapter", base


def test_the_lora_folder_is_what_a_server_looks_for(sealed):
    """It must not hold a config.json: transformers would look for the base's weights beside it."""
    made = converted(sealed[0], "lora", ExportOptions(rank=8))
    assert not (made / "config.json").exists()
    config = json.loads((made / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", "base")
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (8, 8, {})
    tensors = load_file(made / "adapter_model.safetensors")
    ranks = {(v.shape[0] if "lora_A" in k else v.shape[1]) for k, v in tensors.items() if ".lora_" in k}
    assert ranks == {8}


def test_a_merged_model_is_a_pipeline_that_knows_its_labels(sealed, logits, capfd):
    folder, base = sealed
    (shares,) = logits(load_adapter_folder(folder, base=base), TOKENIZER(["a b a"], return_tensors="pt")).softmax(-1)
    capfd.readouterr()
    made = converted(folder, "merged")
    assert capfd.readouterr() == ("", "")
    classify = pipeline("text-classification", model=str(made), top_k=None)
    (found,) = classify(["a b a"])
    assert {it["label"]: it["score"] for it in found} == pytest.approx(
        dict(zip(["no", "yes"], shares.tolist(), strict=True))
    )


def test_its_page_says_what_stands_between_two_texts(sealed):
    path = sealed[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["task"] |= {"text": "one", "text_pair": "two"}
    path.write_text(json.dumps(manifest))
    for form in ("lora", "merged"):
        assert 'the second one begins with "\\n".' in (converted(sealed[0], form) / "README.md").read_text()


def test_a_rank_below_its_own_is_refused(sealed):
    folder, _ = sealed
    with pytest.raises(UsageError, match="`rank`"):
        converted(folder, "lora", ExportOptions(rank=2))


def test_a_damaged_note_is_only_forgotten(sealed):
    folder, _ = sealed
    made = converted(folder, "lora")
    whole = (made / "adapter_model.safetensors").read_bytes()
    for damage in (b"\xff\xfe", b"[]"):
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
    entry = FORMATS.get("lora")
    write = entry.write
    monkeypatch.setattr(entry, "write", lambda *args: (calls.append(1), write(*args)))
    with ThreadPoolExecutor(4) as threads:
        made = set(threads.map(lambda _: converted(folder, "lora"), range(4)))
    assert made == {folder.with_name(f"{folder.name}.lora")}
    assert len(calls) == 1
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


# ---- a base that rounds, and one that a package carries --------------------------------------------------------------
@pytest.mark.parametrize(("size", "rounds"), [(1e-2, True), (1.0, False)])
def test_an_update_that_merging_would_round_away_is_said(
    make_base, save_base, write_adapter, layers, tmp_path, caplog, size, rounds
):
    base = save_base(make_base().bfloat16(), tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    config = LoraXSConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", init_std=size, init_seed=7)
    write_adapter(get_peft_model(make_base().bfloat16(), config).eval(), base, tmp_path / "adapter")
    page = (converted(tmp_path / "adapter", "merged") / "README.md").read_text()
    assert rounds == ("--dtype float32" in caplog.text) == ("--dtype float32" in page)
    caplog.clear()
    whole = load_file(converted(tmp_path / "adapter", "merged", ExportOptions(dtype="float32")) / "model.safetensors")
    assert not caplog.records
    model = load_adapter_folder(tmp_path / "adapter", base=base, dtype=torch.float32)
    for name, layer in layers(model).items():
        update = whole[f"{name.removeprefix('base_model.model.')}.weight"] - layer.get_base_layer().weight
        torch.testing.assert_close(update, layer.get_delta_weight("default"), atol=1e-7, rtol=1e-3)


def test_the_code_beside_an_export_runs_where_the_base_is_in_a_package(
    make_base, adapt, write_adapter, tmp_path, monkeypatch, inputs, logits
):
    site, info = tmp_path / "site", "carrier_model-1.0.dist-info"
    make_base().save_pretrained(site / "carried")
    TOKENIZER.save_pretrained(site / "carried")
    (site / info).mkdir()
    (site / info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier-model\nVersion: 1.0\n")
    (site / info / "RECORD").write_text("".join(f"carried/{p.name},,\n" for p in (site / "carried").iterdir()))
    monkeypatch.syspath_prepend(site)
    ref = BaseModelRef("org/carrier-model", package="carrier-model")
    write_adapter(adapt(target_modules=["query"]), locate(ref), tmp_path / "adapter", base_model=ref)
    expected = logits(load_adapter_folder(tmp_path / "adapter"), inputs)
    forms = [converted(tmp_path / "adapter", form) for form in ("lora", "merged")]
    config = json.loads((forms[0] / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/carrier-model", None)
    for form in forms:
        monkeypatch.chdir(form)
        exec("".join(re.findall(r"```python\n(.*?)```", (form / "README.md").read_text(), flags=re.S)), space := {})
        assert space["tokenizer"]("a").input_ids == [2]
        assert space["model"].config.id2label == {0: "no", 1: "yes"}
        with torch.no_grad():
            answers = space["model"](input_ids=inputs["input_ids"]).logits
        torch.testing.assert_close(answers, expected, atol=1e-5, rtol=1e-4)


def test_a_tokenizer_with_several_chat_templates_goes_along(sealed):
    """They are a folder in the folder."""
    (folder, base), form = sealed, "lora"
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    tokenizer.chat_template = {"default": "plain", "tool_use": "tools"}
    tokenizer.save_pretrained(base.path)
    made = converted(folder, form)
    assert AutoTokenizer.from_pretrained(made).chat_template == tokenizer.chat_template
    (next(iter(made.glob("*/tool_use.jinja")))).write_text("changed")
    assert AutoTokenizer.from_pretrained(converted(folder, form)).chat_template == tokenizer.chat_template
