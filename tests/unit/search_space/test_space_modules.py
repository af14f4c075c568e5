"""Group expressions against the linear layers of real architectures, built small from their own configurations."""

from __future__ import annotations

import pytest
import transformers

from loraxs_search.base_model import linear_modules
from loraxs_search.errors import TargetModulesError
from loraxs_search.records import BaseModel, LinearModule
from loraxs_search.search_space import resolve_modules
from loraxs_search.tasks.kinds import classifier

NUM_LAYERS = 3
WIDE = {"hidden_size": 8, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 2, "intermediate_size": 16}
CONFIGS = {
    "bert": transformers.BertConfig(vocab_size=16, **WIDE),
    "roberta": transformers.RobertaConfig(vocab_size=16, **WIDE),
    "llama": transformers.LlamaConfig(vocab_size=16, **WIDE),
    "modernbert": transformers.ModernBertConfig(
        vocab_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, **WIDE
    ),
    "gpt2": transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=NUM_LAYERS, n_head=2),
    "distilbert": transformers.DistilBertConfig(vocab_size=16, dim=8, n_layers=NUM_LAYERS, n_heads=2, hidden_dim=16),
}
BERT_ATTENTION = {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"}
BERT_FFN = {"intermediate.dense", "output.dense"}
LLAMA_ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
LLAMA_FFN = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
DISTIL_ATTENTION = {f"attention.{name}_lin" for name in ("q", "k", "v", "out")}
MEANINGS = [
    ("bert", "attention", BERT_ATTENTION),
    ("bert", "ffn", BERT_FFN),
    ("bert", "all-linear", BERT_ATTENTION | BERT_FFN),
    ("bert", "attention+ffn", BERT_ATTENTION | BERT_FFN),
    ("bert", "query", {"attention.self.query"}),
    ("bert", "output.dense", {"output.dense"}),
    ("bert", "attention.output.dense", {"attention.output.dense"}),
    ("bert", "dense", {"attention.output.dense"} | BERT_FFN),
    ("bert", "query+ffn", {"attention.self.query"} | BERT_FFN),
    (
        "roberta",
        "query+value+attention.output.dense+output.dense",
        {"attention.self.query", "attention.self.value", "attention.output.dense", "output.dense"},
    ),
    ("gpt2", "attention", {"attn.c_attn", "attn.c_proj"}),
    ("gpt2", "ffn", {"mlp.c_fc", "mlp.c_proj"}),
    ("gpt2", "c_proj", {"attn.c_proj", "mlp.c_proj"}),
    ("gpt2", "attn.c_proj", {"attn.c_proj"}),
    ("llama", "attention", LLAMA_ATTENTION),
    ("llama", "ffn", LLAMA_FFN),
    ("llama", "q_proj+down_proj", {"self_attn.q_proj", "mlp.down_proj"}),
    ("distilbert", "attention", DISTIL_ATTENTION),
    ("distilbert", "ffn", {"ffn.lin1", "ffn.lin2"}),
    ("modernbert", "attention", {"attn.Wqkv", "attn.Wo"}),
    ("modernbert", "ffn", {"mlp.Wi", "mlp.Wo"}),
    ("modernbert", "Wo", {"attn.Wo", "mlp.Wo"}),
]


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """The linear layers of an architecture, as the base model room finds them."""
    found = {}

    def get(name):
        if name not in found:
            path = tmp_path_factory.mktemp(name)
            CONFIGS[name].save_pretrained(path)
            found[name] = linear_modules(BaseModel(name, str(path), ""), classifier(2))
        return found[name]

    return get


def within_layer(name):
    """`bert.encoder.layer.0.output.dense` -> (0, `output.dense`)."""
    parts = name.split(".")
    index = next(i for i, part in enumerate(parts) if part.isdigit())
    return int(parts[index]), ".".join(parts[index + 1 :])


@pytest.mark.parametrize(("architecture", "expression", "wanted"), MEANINGS)
def test_an_expression_means_these_modules_in_every_layer(modules, architecture, expression, wanted):
    names = resolve_modules(expression, modules(architecture))

    assert len(names) == len(set(names))
    assert {within_layer(name) for name in names} == {(i, name) for i in range(NUM_LAYERS) for name in wanted}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_attention_and_ffn_part_the_linear_layers_in_model_order(modules, architecture):
    attention, ffn, everything = (
        resolve_modules(group, modules(architecture)) for group in ("attention", "ffn", "all-linear")
    )
    assert everything == tuple(module.name for module in modules(architecture))
    assert sorted(attention + ffn) == sorted(everything)
    assert resolve_modules("ffn+attention", modules(architecture)) == everything


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("last", [1, 2, 3])
def test_last_k_keeps_the_last_layers_only(modules, architecture, last):
    names = resolve_modules(f"all-linear@last-{last}", modules(architecture))
    kept = {within_layer(name)[0] for name in names}
    assert kept == set(range(NUM_LAYERS - last, NUM_LAYERS))
    assert len(names) * NUM_LAYERS == len(modules(architecture)) * last


def test_each_stack_of_layers_has_its_own_last_layers():
    stacks = [("encoder.block", 2), ("decoder.block", 4)]
    modules = [LinearModule(f"{stack}.{i}.attn.q", 8, 8) for stack, count in stacks for i in range(count)]
    assert resolve_modules("q@last-1", modules) == ("encoder.block.1.attn.q", "decoder.block.3.attn.q")


def test_the_first_number_in_a_path_is_the_layer():
    modules = [LinearModule(f"model.layers.{i}.mlp.experts.{j}.w1", 8, 8) for i in range(2) for j in range(3)]
    assert resolve_modules("experts.1.w1", modules) == tuple(f"model.layers.{i}.mlp.experts.1.w1" for i in range(2))
    assert len(resolve_modules("w1@last-1", modules)) == 3


def test_a_name_that_matches_nothing_is_told_with_the_nearest_first(modules):
    with pytest.raises(TargetModulesError, match=r"made of: attention\.self\.query, .*, but got 'quary'\."):
        resolve_modules("attention.self.value+quary", modules("bert"))


@pytest.mark.parametrize(
    "expression", ["", "query+", "a b+", "query@last-0", "query@first-1", "query@last-2@last-1", "*"]
)
def test_what_is_no_expression_is_refused(modules, expression):
    with pytest.raises(TargetModulesError, match=r"`target_modules` must be GROUP\[\+GROUP\.\.\.\]\[@last-K\]"):
        resolve_modules(expression, modules("bert"))


def test_more_last_layers_than_there_are_is_refused(modules):
    with pytest.raises(TargetModulesError, match=r"K in 1\.\.3"):
        resolve_modules("attention@last-4", modules("bert"))


def test_a_model_without_layers_is_told(modules):
    with pytest.raises(TargetModulesError, match="none in its layers"):
        resolve_modules("attention", [LinearModule("classifier", 8, 2)])
