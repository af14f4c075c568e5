"""What of the topmost layer no head looks at is left out, where that is so."""

from __future__ import annotations

import pytest
import torch
from support.bases import BART, BERT, LLAMA, SMALL, base
from torch import nn
from transformers import (
    BigBirdConfig,
    DistilBertConfig,
    GPT2Config,
    LongformerConfig,
    MptConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from loraxs_search.base_model.reading import dummy_inputs
from loraxs_search.engine import pruning as last_layer
from loraxs_search.engine.pruning import LastLayerPruning

MPT = MptConfig(vocab_size=40, d_model=32, n_layers=2, n_heads=4, max_seq_len=40, pad_token_id=0)
READ_FIRST = [BERT, RobertaConfig(**SMALL, max_position_embeddings=40, pad_token_id=0)]
READ_OTHERS = [
    DistilBertConfig(vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
    GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=40, pad_token_id=0),
    LLAMA,
    MPT,
    LongformerConfig(**SMALL, attention_window=8, max_position_embeddings=64, pad_token_id=1),  # pads by itself
]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def widths_of_top(model: PreTrainedModel) -> list[int]:
    """Return how many tokens of a row of eight each linear layer of the topmost layer is given."""
    seen: list[int] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
        for module in layers_of(model)[-1].modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        model(input_ids=torch.arange(16).view(2, 8) + 1)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("config", READ_FIRST, ids=lambda config: config.model_type)
def test_what_follows_the_last_attention_is_computed_for_the_first_token_alone(config: PretrainedConfig) -> None:
    model = base(config)
    inputs = {"input_ids": torch.randint(1, 40, (3, 9))}
    whole = model(**inputs).logits
    found = LastLayerPruning(model, layers_of(model))
    found.place()
    assert widths_of_top(model) == [8, 8, 8, 1, 1, 1]
    torch.testing.assert_close(model(**inputs).logits, whole, rtol=1e-5, atol=1e-6)
    found.remove()
    assert widths_of_top(model) == [8] * 6


@pytest.mark.parametrize("config", READ_OTHERS, ids=lambda config: config.model_type)
def test_bases_of_another_build_are_computed_whole(config: PretrainedConfig) -> None:
    model = base(config)
    assert LastLayerPruning(model, layers_of(model)).joint is None


def test_a_base_whose_head_reads_the_last_token_is_never_cut_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[tuple[torch.Tensor, ...]] = []
    monkeypatch.setattr(last_layer, "_first_tokens", lambda _, states: cuts.append(states))
    model = base(MPT)  # its head would index tokens that are not there, which ends a GPU's process
    assert LastLayerPruning(model, layers_of(model)).joint is None
    assert not cuts


def test_a_base_with_two_lists_of_layers_is_computed_whole() -> None:
    model = base(BART)
    model(**dummy_inputs(model))
    assert LastLayerPruning(model, model.model.encoder.layers).joint is None


def test_a_base_that_short_rows_would_change_is_left_alone() -> None:
    model = base(BigBirdConfig(**SMALL, max_position_embeddings=64, attention_type="block_sparse", block_size=4))
    assert LastLayerPruning(model, layers_of(model)).joint is None
    assert model.config.attention_type == model.bert.encoder.attention_type == "block_sparse"


class MeanPooler(nn.Module):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states.mean(1)


@torch.no_grad()
@pytest.mark.parametrize(("weight", "bias"), [(0.0, 0.0), (0.0, 1.0), (1e-6, 1.0)])
def test_a_head_that_says_the_same_of_any_row_proves_nothing(weight: float, bias: float) -> None:
    model = base(BERT)
    model.bert.pooler = MeanPooler()
    model.classifier.weight.mul_(weight)
    model.classifier.bias.fill_(bias)
    assert LastLayerPruning(model, layers_of(model)).joint is None


def test_a_base_whose_head_reads_every_token_is_computed_whole() -> None:
    model = base(BERT)
    model.bert.pooler = MeanPooler()
    found = LastLayerPruning(model, layers_of(model))
    found.place()
    assert found.joint is None
    assert widths_of_top(model) == [8] * 6
