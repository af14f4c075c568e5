"""What of the topmost layer nobody reads is left out, where that is so: under heads, and without."""

from __future__ import annotations

import pytest
import torch
from support.bases import BART, BERT, LLAMA, SMALL, base, families, language_model
from support.trials import DECODERS
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.reading import last_states
from loraxs_search.engine.pruning import LastLayerPruning

config_of = AutoConfig.for_model
READ_FIRST = {
    "bert": BERT,
    "distilbert": config_of("distilbert", vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
}
READ_OTHERS = [
    LLAMA,
    config_of("mpt", vocab_size=40, d_model=32, n_layers=2, n_heads=4, max_seq_len=40, pad_token_id=0),
    config_of("longformer", **SMALL, attention_window=8, max_position_embeddings=64, pad_token_id=1),  # pads by itself
]
_OTHERS = {"num_key_value_heads": 2, "pad_token_id": 0}
CUT = {
    **{name: make() for name, make in DECODERS.items() if name not in ("gpt2", "falcon_h1")},
    "phi3": config_of("phi3", **SMALL, **_OTHERS, eos_token_id=2),
    "gpt_neox": config_of("gpt_neox", **SMALL, pad_token_id=0, eos_token_id=2),  # attention and the rest side by side
    "olmo2": config_of("olmo2", **SMALL, **_OTHERS, eos_token_id=2),  # no norm before attention
}
WHOLE = [
    DECODERS["falcon_h1"](),  # attention and a state space are given the same
    DECODERS["gpt2"](),  # what leaves the last layer is viewed as all positions
    config_of("phi", **SMALL, **_OTHERS, eos_token_id=2),  # attention and the rest are given the same
]
READS = torch.tensor([[0, 0], [0, 5], [0, 7], [1, 2], [1, 3], [2, 6]])


def decoder(config: PretrainedConfig) -> PreTrainedModel:
    return language_model(config).requires_grad_(False)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def pruned(model: PreTrainedModel) -> LastLayerPruning:
    return LastLayerPruning(model, layers_of(model))


def cuts(pruning: LastLayerPruning, model: PreTrainedModel) -> bool:
    """Return whether passes can be cut."""
    before = sum(len(module._forward_pre_hooks) for module in model.modules())
    with pruning.placed():
        return sum(len(module._forward_pre_hooks) for module in model.modules()) > before


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.arange(24).view(3, 8) + 3
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def positions_of_top(model: PreTrainedModel) -> list[int]:
    """Return how many positions each linear layer of the topmost layer is given, in the order of calls to come."""
    seen: list[int] = []
    for module in layers_of(model)[-1].modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    return seen


@pytest.mark.parametrize("family", READ_FIRST)
def test_under_a_head_only_the_first_token_goes_on_behind_the_last_attention(family):
    model = base(READ_FIRST[family])
    whole, pruning = model(**inputs()).logits, pruned(model)
    with pruning.placed():
        seen = positions_of_top(model)
        torch.testing.assert_close(model(**inputs()).logits, whole, rtol=1e-5, atol=1e-6)
        assert seen == [24, 24, 24, 3, 3, 3]
    assert torch.equal(model(**inputs()).logits, whole)


@pytest.mark.parametrize("config", READ_OTHERS, ids=lambda config: config.model_type)
def test_under_a_head_that_reads_others_nothing_is_cut_not_even_to_see(config):
    """MPT's would index tokens that are not there, which ends a GPU's process."""
    model = base(config)
    seen = positions_of_top(model)
    assert not cuts(pruned(model), model)
    assert len(set(seen)) <= 1 or config.model_type == "longformer"


def test_a_base_of_two_lists_or_that_short_rows_would_change_is_left_alone():
    model = base(BART)
    assert not cuts(LastLayerPruning(model, model.model.encoder.layers), model)
    model = base(
        config_of("big_bird", **SMALL, max_position_embeddings=64, attention_type="block_sparse", block_size=4)
    )
    assert not cuts(pruned(model), model)
    assert model.config.attention_type == model.bert.encoder.attention_type == "block_sparse"


@torch.no_grad()
@pytest.mark.parametrize(("weight", "bias"), [(1e-6, 1.0), (1.0, 0.0)])
def test_a_head_that_reads_every_token_or_says_the_same_of_any_row_is_computed_whole(weight, bias):
    model = base(BERT)
    model.bert.pooler.forward = lambda states: states.mean(1)
    model.classifier.weight.mul_(weight)
    model.classifier.bias.fill_(bias)
    assert not cuts(pruned(model), model)


@pytest.mark.parametrize("family", families(CUT))
def test_what_follows_the_last_attention_is_computed_at_the_reads_alone(family):
    model = decoder(CUT[family])
    whole, pruning, cuts = last_states(model, inputs()), pruned(model), list[int]()
    pruning.place()
    seen = positions_of_top(model)
    with pruning.reading(READS, 8, lambda: cuts.append(len(seen))) as is_cut:
        states = last_states(model, inputs())
    assert is_cut
    torch.testing.assert_close(states[0], whole[READS[:, 0], READS[:, 1]], rtol=1e-5, atol=1e-5)
    num_joint = {"phi3": 1, "gpt_neox": 1, "mamba": 2}.get(family, 3)  # queries, keys and values; in and x of a state
    assert cuts == [num_joint]
    assert seen == [24] * num_joint + [6] * (len(seen) - num_joint)


def test_layers_of_another_form_and_passes_that_read_nothing_are_computed_whole():
    for config in WHOLE:
        other = decoder(config)
        assert not cuts(pruned(other), other), config.model_type
    model = decoder(CUT["llama"])
    whole, pruning = last_states(model, inputs()), pruned(model)
    with pruning.reading(READS, 8, lambda: None) as is_cut:
        assert not is_cut  # nothing is in place
    pruning.place()
    assert torch.equal(last_states(model, inputs()), whole)
    pruning.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["head", "reads"])
def test_gradients_are_those_of_the_whole_layer(kind):
    model = base(BERT) if kind == "head" else decoder(CUT["llama"])
    pruning, found = pruned(model), []
    for cut in (False, True):
        embedded = model.get_input_embeddings()(inputs()["input_ids"]).detach().requires_grad_()
        given = {"inputs_embeds": embedded, "attention_mask": inputs()["attention_mask"]}
        if cut:
            pruning.place()
        with pruning.reading(None if kind == "head" else READS, 8, lambda: None) as is_cut:
            if kind == "head":
                states = model(**given).logits
            else:
                states = last_states(model, given)
                states = states[0] if is_cut else states[READS[:, 0], READS[:, 1]]
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        found.append(embedded.grad)
    assert (found[1] - found[0]).norm() <= 1e-5 * found[0].norm()
