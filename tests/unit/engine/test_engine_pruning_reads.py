"""What of the topmost layer nobody reads is left out, where that is so."""

from __future__ import annotations

import pytest
import torch
from support.bases import SMALL
from support.decoders import DECODERS
from support.families import families
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.reading import last_states
from loraxs_search.engine.pruning import ReadPruning

_OTHERS = {"num_key_value_heads": 2, "pad_token_id": 0}
CUT = {
    **{name: make() for name, make in DECODERS.items() if name not in ("gpt2", "falcon_h1")},
    "phi3": Phi3Config(**SMALL, **_OTHERS, eos_token_id=2),
    "gpt_neox": GPTNeoXConfig(**SMALL, pad_token_id=0, eos_token_id=2),  # attention and the rest side by side
    "olmo2": Olmo2Config(**SMALL, **_OTHERS, eos_token_id=2),  # no norm before attention
}
WHOLE = [
    DECODERS["falcon_h1"](),  # attention and a state space are given the same
    DECODERS["gpt2"](),  # what leaves the last layer is viewed as all positions
    PhiConfig(**SMALL, **_OTHERS, eos_token_id=2),  # attention and the rest are given the same
]
READS = torch.tensor([[0, 0], [0, 5], [0, 7], [1, 2], [1, 3], [2, 6]])


def decoder(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.requires_grad_(False)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.arange(24).view(3, 8) + 3
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def positions_of_top(model: PreTrainedModel) -> list[int]:
    """Return how many positions each linear layer of the topmost layer is given, in the order of calls."""
    seen: list[int] = []
    for module in layers_of(model)[-1].modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    return seen


@pytest.mark.parametrize("family", families(CUT))
def test_what_follows_the_last_attention_is_computed_at_the_reads_alone(family: str) -> None:
    model = decoder(CUT[family])
    whole, pruning, cuts = last_states(model, inputs()), ReadPruning(model, layers_of(model)), list[int]()
    pruning.place()
    seen = positions_of_top(model)
    with pruning.reading(READS, 8, lambda: cuts.append(len(seen))) as is_cut:
        states = last_states(model, inputs())
    assert is_cut
    torch.testing.assert_close(states[0], whole[READS[:, 0], READS[:, 1]], rtol=1e-5, atol=1e-5)
    num_joint = {"phi3": 1, "gpt_neox": 1, "mamba": 2}.get(family, 3)  # queries, keys and values; in and x of a state
    assert cuts == [num_joint]
    assert seen == [24] * num_joint + [6] * (len(seen) - num_joint)


def test_passes_that_read_nothing_and_other_threads_are_computed_whole() -> None:
    model = decoder(CUT["llama"])
    whole, pruning = last_states(model, inputs()), ReadPruning(model, layers_of(model))
    with pruning.reading(READS, 8, lambda: None) as is_cut:
        assert not is_cut  # nothing is in place
    pruning.place()
    assert torch.equal(last_states(model, inputs()), whole)
    pruning.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("config", WHOLE, ids=lambda config: config.model_type)
def test_layers_of_another_form_are_computed_whole(config: PretrainedConfig) -> None:
    model = decoder(config)
    pruning = ReadPruning(model, layers_of(model))
    pruning.place()
    with pruning.reading(READS, 8, lambda: None) as is_cut:
        assert not is_cut


def test_gradients_are_those_of_the_whole_layer() -> None:
    model = decoder(CUT["llama"])
    pruning, found = ReadPruning(model, layers_of(model)), []
    pruning.place()
    for cut in (False, True):
        embedded = model.get_input_embeddings()(inputs()["input_ids"]).requires_grad_()
        given = {"inputs_embeds": embedded, "attention_mask": inputs()["attention_mask"]}
        if cut:
            with pruning.reading(READS, 8, lambda: None):
                states = last_states(model, given)[0]
        else:
            states = last_states(model, given)[READS[:, 0], READS[:, 1]]
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        found.append(embedded.grad)
    assert (found[1] - found[0]).norm() <= 1e-5 * found[0].norm()
