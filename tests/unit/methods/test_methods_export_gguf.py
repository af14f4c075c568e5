"""Plain LoRA as GGUF: read back with the library of the format, it is the update that the adapter makes.

Modelfiles: what Ollama's parser takes, and what it makes of it.
"""

from __future__ import annotations

import gguf
import pytest
import torch
from peft import get_peft_model
from support import bases
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config, Qwen3MoeConfig

from loraxs_search.errors import UsageError
from loraxs_search.methods._base import PlainLora
from loraxs_search.methods.export.gguf import modelfile, write_gguf_lora
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.loraxs import LoraXSConfig
from loraxs_search.records.task import Serving

SMALL = bases.SMALL | {"num_key_value_heads": 2, "pad_token_id": 0}
OWN_HEADS = SMALL | {"head_dim": 6}
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


def lora_of(config: PretrainedConfig) -> PlainLora:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    own = LoraXSConfig(r=4, target_modules="all-linear", init_std=0.5, task_type="CAUSAL_LM")
    return LoraXS().plain_lora(get_peft_model(model, own))


def read(path) -> tuple[dict[str, object], dict[str, Tensor]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}


def at_neighbours(b: Tensor, num_heads: int) -> Tensor:
    """Row by row: llama.cpp has rows i and i + half of a head side by side."""
    size = len(b) // num_heads
    order = [head * size + i + half for head in range(num_heads) for i in range(size // 2) for half in (0, size // 2)]
    return b[order]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_read_back_is_the_update(name, tmp_path):
    config, arch, reorders = CONFIGS[name]
    lora = lora_of(config)
    write_gguf_lora(lora, config, tmp_path / "a.gguf", base="org/base")
    fields, tensors = read(tmp_path / "a.gguf")
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
        (Qwen3MoeConfig(**SMALL), "q_proj", "--format gguf.*llama.*qwen3_moe"),
        (LlamaConfig(**SMALL), "rotor", r"no model\.layers\.0\.self_attn\.rotor"),
    ):
        lora = PlainLora({f"model.layers.0.self_attn.{layer}": (torch.ones(2, 4), torch.ones(4, 2))}, {})
        with pytest.raises(UsageError, match=match):
            write_gguf_lora(lora, config, tmp_path / "a.gguf", base="b")
    assert not list(tmp_path.iterdir())


def test_a_prompt_of_one_column_is_the_template():
    serving = Serving("Question: {question}\nAnswer:", stop=("\nQuestion:", "###"), max_new_tokens=64)
    lines = modelfile("org/base", serving)
    assert 'TEMPLATE """Question: {{ .Prompt }}\nAnswer:"""\n' in lines
    assert 'PARAMETER stop """\nQuestion:"""\n' in lines
    assert 'PARAMETER stop """###"""\n' in lines
    assert "PARAMETER num_predict 64\nPARAMETER temperature 0\nPARAMETER top_p 1\n" in lines
    assert "PARAMETER top_k 0\nPARAMETER repeat_penalty 1\n" in lines
    assert "org/base" in lines
    assert "FROM ./base.gguf\nADAPTER ./adapter.gguf\n" in lines


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
