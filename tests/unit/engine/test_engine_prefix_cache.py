"""How deep passes may begin, and on which bases: what is no plain chain of layers is computed in full."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from loraxs_search.base_model.layers import repeated_layers
from loraxs_search.engine.prefix_cache import PrefixCache

SIZE = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 4, "vocab_size": 50}
BLOCK = "bert.encoder.layer"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZE, pad_token_id=0)).eval().requires_grad_(False)


def test_the_repeated_layers_are_found_by_the_names_of_what_may_be_adapted(model):
    names = [f"{BLOCK}.0.output.dense", f"{BLOCK}.3.output.dense"]
    assert repeated_layers(model, names) == (BLOCK, model.bert.encoder.layer)
    assert repeated_layers(model, ["bert.pooler.dense"]) == ("", None)
    model.other = nn.ModuleList([nn.Linear(16, 16)])
    assert repeated_layers(model, [*names, "other.0.inner"]) == ("", None)


def inputs() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(14).view(2, 7) + 3, "attention_mask": torch.ones(2, 7, dtype=torch.int64)}


def test_a_pass_begins_at_the_given_layer_with_the_given_states(model):
    whole, layers = model(**inputs()).logits, list(model.bert.encoder.layer)
    shortcut = PrefixCache(model, model.bert.encoder.layer)
    shortcut.place(3, ())
    states = shortcut.entering(inputs())
    calls: list[int] = []
    layers[0].register_forward_hook(lambda *_: calls.append(0))
    layers[3].register_forward_hook(lambda *_: calls.append(3))
    with shortcut.given(states):
        assert torch.equal(model(**inputs()).logits, whole)
    assert (shortcut.depth, calls) == (3, [3])
    shortcut.remove()
    assert list(model.bert.encoder.layer) == layers
    assert shortcut.depth == 0


def test_threads_have_their_own_states(model):
    shortcut = PrefixCache(model, model.bert.encoder.layer)
    shortcut.place(2, ())
    states = shortcut.entering(inputs())
    with shortcut.given(torch.zeros_like(states)), ThreadPoolExecutor() as pool:
        assert torch.equal(pool.submit(shortcut.entering, inputs()).result(), states)


@pytest.mark.parametrize("kind", ["tuples", "looks", "mixes rows"])
def test_a_base_that_is_no_chain_is_computed_in_full(model, kind):
    layers = model.bert.encoder.layer
    if kind == "tuples":
        layers[1].register_forward_hook(lambda _, args, out: (out,))
    elif kind == "looks":  # at what a far lower one was given in the same forward, as shared keys and values do
        seen: list[Tensor] = []
        model.register_forward_pre_hook(lambda *_: seen.clear())
        layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        layers[3].register_forward_pre_hook(lambda _, args: (sum((x.flip(-1) for x in seen), args[0]), *args[1:]))
    else:
        layers[2].register_forward_hook(lambda _, args, out: out + args[0].mean(1, keepdim=True))
        layers[0].register_forward_hook(lambda _, args, out: out + 1)  # so that padding is not zero
    before = list(layers)
    shortcut = PrefixCache(model, layers)
    shortcut.place(2, ())
    assert shortcut.depth == 0
    assert list(layers) == before
