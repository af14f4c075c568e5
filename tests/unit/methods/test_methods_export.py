"""An adapter folder in other forms: the same function to tools that know nothing of LoRA-XS."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import gguf
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from support.bases import SMALL, language_model, word_tokenizer
from support.bases import small_classifier as make_base
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, PretrainedConfig, Qwen3Config, Qwen3MoeConfig, pipeline

from loraxs_search.base_model.locate import locate
from loraxs_search.errors import UsageError
from loraxs_search.methods._base import PlainLora
from loraxs_search.methods.export._base import ExportOptions
from loraxs_search.methods.export.folder import FORMATS, converted
from loraxs_search.methods.export.gguf import modelfile, write_gguf_lora
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.loraxs import LoraXSConfig
from loraxs_search.records.task import BaseModelRef, Serving

from .conftest import adapt, layers, logits, save_base, write_adapter

TOKENIZER = word_tokenizer(["[UNK]", "[PAD]", "a"])


@pytest.fixture
def sealed(tmp_path):
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
    with pytest.raises(UsageError, match="`rank`"):  # below its own
        converted(sealed[0], "lora", ExportOptions(rank=2))


def test_a_merged_model_is_a_pipeline_that_knows_its_labels(sealed, capfd):
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


def test_a_tokenizer_with_several_chat_templates_goes_along(sealed):
    """They are a folder in the folder."""
    folder, base = sealed
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    tokenizer.chat_template = {"default": "plain", "tool_use": "tools"}
    tokenizer.save_pretrained(base.path)
    made = converted(folder, "lora")
    assert AutoTokenizer.from_pretrained(made).chat_template == tokenizer.chat_template
    (next(iter(made.glob("*/tool_use.jinja")))).write_text("changed")
    assert AutoTokenizer.from_pretrained(converted(folder, "lora")).chat_template == tokenizer.chat_template


# ---- a base that rounds, and one that a package carries --------------------------------------------------------------
@pytest.mark.parametrize("is_fast", [True, False])  # else it is loaded in float32, and written in bfloat16 all the same
@pytest.mark.parametrize(("size", "rounds"), [(1e-2, True), (1.0, False)])
def test_an_update_that_merging_would_round_away_is_said(tmp_path, caplog, size, rounds, is_fast, monkeypatch):
    monkeypatch.setattr("loraxs_search.base_model.load._has_bfloat16", lambda _: is_fast)
    base = save_base(make_base().bfloat16(), tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    config = LoraXSConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", init_std=size, init_seed=7)
    write_adapter(get_peft_model(make_base().bfloat16(), config).eval(), base, tmp_path / "adapter")
    page = (converted(tmp_path / "adapter", "merged") / "README.md").read_text()
    stored = load_file(tmp_path / "adapter.merged" / "model.safetensors")
    assert {value.dtype for name, value in stored.items() if "encoder" in name} == {torch.bfloat16}
    assert rounds == ("--dtype float32" in caplog.text) == ("--dtype float32" in page)
    caplog.clear()
    whole = load_file(converted(tmp_path / "adapter", "merged", ExportOptions(dtype="float32")) / "model.safetensors")
    assert not caplog.records
    model = load_adapter_folder(tmp_path / "adapter", base=base, dtype=torch.float32)
    for name, layer in layers(model).items():
        update = whole[f"{name.removeprefix('base_model.model.')}.weight"] - layer.get_base_layer().weight
        torch.testing.assert_close(update, layer.get_delta_weight("default"), atol=1e-7, rtol=1e-3)


def test_the_code_beside_an_export_runs_where_the_base_is_in_a_package(install, tmp_path, monkeypatch, inputs):
    for part in (make_base(), TOKENIZER):
        part.save_pretrained(tmp_path / "carried")
    install({f"carrier_model/{path.name}": path.read_bytes() for path in (tmp_path / "carried").iterdir()})
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


# ---- plain LoRA as GGUF: read back with the library of the format, it is the update that the adapter makes -----------
LLAMA_LIKE = SMALL | {"num_key_value_heads": 2, "pad_token_id": 0}
OWN_HEADS = LLAMA_LIKE | {"head_dim": 6}
CONFIGS: dict[str, tuple[PretrainedConfig, str, bool]] = {  # llama.cpp's name, whether query and key are reordered
    "llama": (LlamaConfig(**OWN_HEADS), "llama", True),
    "qwen3": (Qwen3Config(**OWN_HEADS), "qwen3", False),
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def at_neighbours(b: Tensor, num_heads: int) -> Tensor:
    """Row by row: llama.cpp has rows i and i + half of a head side by side."""
    size = len(b) // num_heads
    order = [head * size + i + half for head in range(num_heads) for i in range(size // 2) for half in (0, size // 2)]
    return b[order]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_read_back_is_the_update(name, tmp_path):
    config, arch, reorders = CONFIGS[name]
    own = LoraXSConfig(r=4, target_modules="all-linear", init_std=0.5, task_type="CAUSAL_LM")
    lora = LoraXS().plain_lora(get_peft_model(language_model(config), own))
    write_gguf_lora(lora, config, tmp_path / "a.gguf", base="org/base")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    kept = ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha", "general.base_model.0.name")
    assert [fields[key] for key in kept] == [arch, "adapter", "lora", 4.0, "org/base"]
    assert len(tensors) == 2 * len(lora.pairs) == 2 * 2 * len(NAMES)
    for module, (a, b) in lora.pairs.items():
        layer, part = module.split(".")[2], ".".join(module.split(".")[3:])
        stored = f"blk.{layer}.{NAMES[part]}.weight"
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(part[-6:])
        rows = at_neighbours(b, heads) if reorders and heads else b
        torch.testing.assert_close(tensors[f"{stored}.lora_b"] @ tensors[f"{stored}.lora_a"], rows @ a)


def test_a_base_or_a_layer_that_llama_cpp_lacks_is_refused(tmp_path):
    for config, layer, match in (
        (Qwen3MoeConfig(**LLAMA_LIKE), "q_proj", "--format gguf.*llama.*qwen3_moe"),
        (LlamaConfig(**LLAMA_LIKE), "rotor", r"no model\.layers\.0\.self_attn\.rotor"),
    ):
        lora = PlainLora({f"model.layers.0.self_attn.{layer}": (torch.ones(2, 4), torch.ones(4, 2))}, {})
        with pytest.raises(UsageError, match=match):
            write_gguf_lora(lora, config, tmp_path / "a.gguf", base="b")
    assert not list(tmp_path.iterdir())


# ---- modelfiles: what Ollama's parser takes, and what it makes of it -------------------------------------------------
def test_a_prompt_of_one_column_is_the_template():
    serving = Serving("Question: {question}\nAnswer:", stop=("\nQuestion:", "###"), max_new_tokens=64)
    lines = modelfile("org/base", serving)
    for said in (
        'TEMPLATE """Question: {{ .Prompt }}\nAnswer:"""\n',
        'PARAMETER stop """\nQuestion:"""\n',
        'PARAMETER stop """###"""\n',
        "PARAMETER num_predict 64\nPARAMETER temperature 0\nPARAMETER top_p 1\n",
        "PARAMETER top_k 0\nPARAMETER repeat_penalty 1\n",
        "FROM ./base.gguf\nADAPTER ./adapter.gguf\n",
    ):
        assert said in lines


def test_what_goes_parser_reads_in_braces_is_written_so_that_the_prompt_comes_out():
    """Go reads `{{{` as an action that begins with a brace, which it refuses."""
    for prompt, template in (
        ("{{x}} {{{{y}}}} {z}:", '"""{x} {{ "{{" }}y}} {{ .Prompt }}:"""'),
        (r"\boxed{{{x}}}:", r'"""\boxed{{ "{" }}{{ .Prompt }}}:"""'),
        ("{{{{{{{x}", '"""{{ "{{" }}{{ "{" }}{{ .Prompt }}"""'),
    ):
        assert f"TEMPLATE {template}" in modelfile("b", Serving(prompt))


def test_what_cannot_be_quoted_or_filled_in_is_left_to_the_user():
    lines = modelfile("b", Serving('JSON: {x} "', stop=('"', "\n", 'so """ said')))
    assert '# This ends an answer too: \'"\'\nPARAMETER stop """\n"""\n' in lines
    assert lines.count("PARAMETER stop") == 1
    for prompt in ("{first} and {second}", '{text}"', 'a """ {text}:'):
        lines = modelfile("b", Serving(prompt))
        assert f"# Give the whole prompt, which was in training: {prompt!r}\n" in lines
        assert 'TEMPLATE """{{ .Prompt }}"""\n' in lines
    serving = Serving(None, (("system", "You know {topic}."), ("user", "Answer in a word: {question}")))
    lines = modelfile("b", serving)
    assert "# Give this message of the system before: 'You know {topic}.'\n" in lines
    assert "# Give the whole message of the user, which was in training: 'Answer in a word: {question}'\n" in lines
    assert "SYSTEM" not in lines
    assert "PARAMETER" not in modelfile("b", None)


def test_messages_go_through_the_bases_own_template_and_those_before_the_users_are_written_down():
    few = (("system", "Say {{a}} word."), ("user", "1 + 1"), ("assistant", "2"), ("user", "{question}"))
    lines = modelfile("b", Serving(None, few, temperature=0.7, top_p=0.9, ends=("<|im_end|>",)))
    assert 'SYSTEM """Say {a} word."""\nMESSAGE user """1 + 1"""\nMESSAGE assistant """2"""\n' in lines
    assert "# Give" not in lines, "the column is all that a user types"
    assert 'PARAMETER stop """<|im_end|>"""\n' in lines
    assert "TEMPLATE" not in lines
    assert "PARAMETER temperature 0.7\nPARAMETER top_p 0.9\n" in lines
