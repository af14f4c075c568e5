"""Plain LoRA as GGUF: read back with the library of the format, it is the update that the adapter makes.

Modelfiles: what Ollama's parser takes, and what it makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import gguf
import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from loraxs_search.errors import UsageError
from loraxs_search.methods.export.gguf import modelfile, write_gguf_lora
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.loraxs import LoraXSConfig
from loraxs_search.records.task import Serving

SMALL = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "pad_token_id": 0,
}
OWN_HEADS = SMALL | {"head_dim": 8}
CONFIGS: dict[str, tuple[PretrainedConfig, str, bool]] = {  # llama.cpp's name, whether query and key are reordered
    "llama": (LlamaConfig(**SMALL), "llama", True),
    "llama, wide heads": (LlamaConfig(**OWN_HEADS), "llama", True),
    "mistral": (MistralConfig(**SMALL, sliding_window=8), "llama", True),
    "smollm3": (SmolLM3Config(**SMALL), "smollm3", True),
    "qwen2": (Qwen2Config(**SMALL), "qwen2", False),
    "qwen3": (Qwen3Config(**OWN_HEADS), "qwen3", False),
    "gemma": (GemmaConfig(**OWN_HEADS), "gemma", False),
    "gemma2": (Gemma2Config(**OWN_HEADS), "gemma2", False),
    "gemma3": (Gemma3TextConfig(**OWN_HEADS), "gemma3", False),
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


def pairs_of(config: PretrainedConfig, targets: str | list[str] = "all-linear") -> Mapping[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    adapted = get_peft_model(model, LoraXSConfig(r=4, target_modules=targets, init_std=0.5, task_type="CAUSAL_LM"))
    return LoraXS().plain_lora(adapted).pairs


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
    pairs = pairs_of(config)
    write_gguf_lora(pairs, config, tmp_path / "a.gguf", base="org/base")
    fields, tensors = read(tmp_path / "a.gguf")
    kept = ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha", "general.base_model.0.name")
    assert [fields[key] for key in kept] == [arch, "adapter", "lora", 4.0, "org/base"]
    assert len(tensors) == 2 * len(pairs) == 2 * 2 * len(NAMES)
    for module, (a, b) in pairs.items():
        layer, part = module.split(".")[2], ".".join(module.split(".")[3:])
        stored = f"blk.{layer}.{NAMES[part]}.weight"
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(part[-6:])
        rows = at_neighbours(b, heads) if reorders and heads else b
        torch.testing.assert_close(tensors[f"{stored}.lora_b"] @ tensors[f"{stored}.lora_a"], rows @ a)


def test_ranks_that_differ_are_filled_up_to_the_largest(tmp_path):
    config, *_ = CONFIGS["llama"]
    pairs = {
        module: (a[: 2 + number % 3], b[:, : 2 + number % 3])
        for number, (module, (a, b)) in enumerate(pairs_of(config).items())
    }
    write_gguf_lora(pairs, config, tmp_path / "a.gguf", base="org/base")
    fields, tensors = read(tmp_path / "a.gguf")
    assert fields["adapter.lora.alpha"] == 4.0
    assert {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_a")} == {4}
    a, b = pairs["model.layers.0.mlp.up_proj"]
    torch.testing.assert_close(tensors["blk.0.ffn_up.weight.lora_b"] @ tensors["blk.0.ffn_up.weight.lora_a"], b @ a)


def test_reordered_rows_turn_as_the_base_turns_them():
    """Rotary positions of llama.cpp on its rows are those of transformers on its own, reordered."""
    half, num_heads = 4, 2
    angles = torch.rand(half)
    q = torch.randn(num_heads * 2 * half, 1)
    first, second = q.reshape(num_heads, 2, half).unbind(1)
    turned = torch.stack(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], 1
    ).reshape(-1, 1)
    even, odd = at_neighbours(q, num_heads).reshape(num_heads, half, 2).unbind(2)
    neighbours = torch.stack(
        [even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()], 2
    ).reshape(-1, 1)
    torch.testing.assert_close(neighbours, at_neighbours(turned, num_heads))


@pytest.mark.parametrize("config", [GPT2Config(n_embd=24, n_layer=1, n_head=2), Qwen3MoeConfig(**SMALL)])
def test_another_base_is_refused(config, tmp_path):
    pairs = {"model.layers.0.self_attn.q_proj": (torch.ones(2, 4), torch.ones(4, 2))}
    with pytest.raises(UsageError, match=f"--format gguf.*llama.*{config.model_type}"):
        write_gguf_lora(pairs, config, tmp_path / "a.gguf", base="b")
    assert not list(tmp_path.iterdir())


def test_a_layer_that_llama_cpp_lacks_is_refused(tmp_path):
    pairs = {"model.layers.0.self_attn.rotor": (torch.ones(2, 4), torch.ones(4, 2))}
    with pytest.raises(UsageError, match=r"no model\.layers\.0\.self_attn\.rotor"):
        write_gguf_lora(pairs, LlamaConfig(**SMALL), tmp_path / "a.gguf", base="b")


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


def test_braces_are_those_of_the_prompt():
    assert 'TEMPLATE """{x} {{ "{{" }}y}} {{ .Prompt }}:"""' in modelfile("b", Serving("{{x}} {{{{y}}}} {z}:"))


def test_a_brace_before_the_column_begins_no_action():
    """Go reads `{{{` as an action that begins with a brace, which it refuses."""
    assert r'TEMPLATE """\boxed{{ "{" }}{{ .Prompt }}}:"""' in modelfile("b", Serving(r"\boxed{{{x}}}:"))
    assert 'TEMPLATE """{{ "{{" }}{{ "{" }}{{ .Prompt }}"""' in modelfile("b", Serving("{{{{{{{x}"))


def test_a_stop_that_cannot_be_quoted_is_said():
    lines = modelfile("b", Serving('JSON: {x} "', stop=('"', "\n")))
    assert '# This ends an answer too: \'"\'\nPARAMETER stop """\n"""\n' in lines


def test_a_prompt_that_cannot_be_one_is_left_to_the_user():
    for prompt in ("{first} and {second}", '{text}"', 'a """ {text}:'):
        lines = modelfile("b", Serving(prompt))
        assert f"# Give the whole prompt, which was in training: {prompt!r}\n" in lines
        assert 'TEMPLATE """{{ .Prompt }}"""\n' in lines
    assert "PARAMETER stop" not in modelfile("b", Serving("{x}:", stop=('so """ said',)))


def test_messages_go_through_the_bases_own_template():
    serving = Serving(None, (("user", "{question}"),), temperature=0.7, top_p=0.9, ends=("<|im_end|>",))
    lines = modelfile("b", serving)
    assert 'PARAMETER stop """<|im_end|>"""\n' in lines
    assert "TEMPLATE" not in lines
    assert "PARAMETER temperature 0.7\nPARAMETER top_p 0.9\n" in lines


def test_messages_before_the_users_are_written_down():
    few = (("system", "Say {{a}} word."), ("user", "1 + 1"), ("assistant", "2"), ("user", "{question}"))
    lines = modelfile("b", Serving(None, few))
    assert 'SYSTEM """Say {a} word."""\nMESSAGE user """1 + 1"""\nMESSAGE assistant """2"""\n' in lines
    assert "# Give" not in lines, "the column is all that a user types"


def test_what_ollama_cannot_fill_in_is_left_to_the_user():
    serving = Serving(None, (("system", "You know {topic}."), ("user", "Answer in a word: {question}")))
    lines = modelfile("b", serving)
    assert "# Give this message of the system before: 'You know {topic}.'\n" in lines
    assert "# Give the whole message of the user, which was in training: 'Answer in a word: {question}'\n" in lines
    assert "SYSTEM" not in lines


def test_an_adapter_that_is_not_asked_by_a_prompt_has_no_settings():
    assert "PARAMETER" not in modelfile("b", None)
