"""When two results of a base are taken for the same, and which layers are given rows."""

from __future__ import annotations

import pytest
import torch
from support.bases import BART, BERT, LLAMA, SMALL, base
from torch import Tensor, nn
from transformers import DebertaV2Config, GPT2Config, PretrainedConfig, XLNetConfig

from loraxs_search.base_model import alike, layers_beyond_rows

LOGITS = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


def test_rounding_leaves_results_alike() -> None:
    assert alike(LOGITS, LOGITS)
    assert alike(LOGITS.bfloat16().float(), LOGITS)
    assert alike(LOGITS[:, :1], LOGITS[:, :1])
    assert not alike(LOGITS * 1.02, LOGITS)
    assert not alike(LOGITS.flip(0), LOGITS)
    assert not alike(LOGITS[:, :1], LOGITS)


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(2, 2), LOGITS[:1].expand(2, 2), LOGITS[:1] + LOGITS * 1e-4, LOGITS * torch.nan, LOGITS * torch.inf],
    ids=["zero", "the same for each row", "nearly so", "no numbers", "no finite ones"],
)
def test_what_does_not_tell_rows_apart_is_alike_to_nothing(logits: Tensor) -> None:
    assert not alike(logits, logits)


SHARED_POSITIONS = DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"], share_att_key=True)
OWN_POSITIONS = DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["c2p"])
TOKENS_FIRST = XLNetConfig(vocab_size=40, d_model=32, n_layer=2, n_head=4, d_inner=48, pad_token_id=0)
GPT2 = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, pad_token_id=0)


@pytest.mark.parametrize(
    ("config", "endings"),
    [
        (BERT, ()),
        (LLAMA, ()),
        (GPT2, ()),
        (BART, ()),
        (SHARED_POSITIONS, ("query_proj", "key_proj")),
        (OWN_POSITIONS, ("pos_key_proj",)),
        (TOKENS_FIRST, ("layer_1", "layer_2")),
    ],
    ids=["bert", "llama", "gpt2", "bart", "deberta", "deberta's positions", "xlnet"],
)
def test_layers_that_are_given_positions_or_tokens_before_rows(
    config: PretrainedConfig, endings: tuple[str, ...]
) -> None:
    model = base(config)
    kinds = (nn.Linear, type(base(GPT2).transformer.h[0].mlp.c_fc))
    names = [name for name, module in model.base_model.named_modules() if isinstance(module, kinds)]
    names = [f"{model.base_model_prefix}.{name}" for name in names if any(map(str.isdigit, name.split(".")))]
    assert len(names) >= 4
    found = layers_beyond_rows(model, names)
    assert found == {name for name in names if endings and name.split(".")[-1] in endings}
