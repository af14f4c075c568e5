"""Which bases and layers may serve rows of many trials in one pass: what was not seen to be safe is not."""

from __future__ import annotations

import copy

import pytest
import torch
from support.bases import BART, BERT, LLAMA, SMALL, XLNET, base
from torch import Tensor, nn
from transformers import BigBirdConfig, ConvBertConfig, DebertaV2Config, GPT2Config, LongformerConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model import sharing
from loraxs_search.base_model.layers import head_names
from loraxs_search.base_model.sharing import probe_sharing
from loraxs_search.base_model.tokenizer import padding_side

SHARED_POSITIONS = DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"], share_att_key=True)
OWN_POSITIONS = DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["c2p"])
GPT2_PADDED_WITH_ITS_END = GPT2Config(
    vocab_size=40, n_embd=32, n_layer=2, n_head=4, pad_token_id=5, bos_token_id=5, eos_token_id=5
)
LONGFORMER = LongformerConfig(**SMALL, attention_window=8, max_position_embeddings=64, pad_token_id=1, sep_token_id=2)
CONVOLVED = ConvBertConfig(**SMALL, embedding_size=32)
SPARSE = BigBirdConfig(**SMALL, max_position_embeddings=64, attention_type="block_sparse", block_size=4, sep_token_id=2)


def layers_of(model: PreTrainedModel) -> list[str]:
    heads = head_names(model)
    linears = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    return [name for name in linears if name.split(".")[0] not in heads and any(map(str.isdigit, name.split(".")))]


@pytest.mark.parametrize(
    ("config", "dtype", "endings"),
    [
        (BERT, torch.float32, ()),
        (LLAMA, torch.bfloat16, ()),
        (GPT2_PADDED_WITH_ITS_END, torch.float32, ()),
        (BART, torch.bfloat16, ()),
        (SHARED_POSITIONS, torch.float32, ("query_proj", "key_proj")),
        (OWN_POSITIONS, torch.bfloat16, ("pos_key_proj",)),
        (XLNET, torch.float32, ("layer_1", "layer_2")),
        (LONGFORMER, torch.bfloat16, ("query", "key", "value", "query_global", "key_global", "value_global")),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_layers_that_are_given_positions_or_tokens_before_rows(config, dtype, endings):
    model = base(config, noise=0.1).to(dtype)
    names = layers_of(model)
    assert len(names) >= 4
    found = probe_sharing(model, names)
    assert found.fault == ""
    assert found.unpackable == {name for name in names if endings and name.split(".")[-1] in endings}


def test_a_base_whose_rows_depend_on_their_padding_shares_no_pass():
    assert probe_sharing(base(CONVOLVED, noise=0.1), ()).fault == "what a row gives depends on its padding"


def test_a_head_that_reads_the_last_position_is_given_a_token_there(monkeypatch):
    model = base(XLNET, noise=0.1)
    assert probe_sharing(model, ()).fault == ""
    first = copy.deepcopy(XLNET)
    first.summary_type = "first"
    assert padding_side(first) == padding_side(BERT) == "right"
    monkeypatch.setattr("loraxs_search.base_model.reading.padding_side", lambda _: "right")
    monkeypatch.setattr(sharing, "padding_side", lambda _: "right")
    assert probe_sharing(model, ()).fault == "what a row gives depends on its padding"


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda x: x, ""),
        (lambda x: x + 0.01 * x.mean(1, keepdim=True), "what a row gives depends on its padding"),
        (lambda x: x + 0.01 * x.mean(0, keepdim=True), "what a row gives depends on the rows beside it"),
        (lambda x: x + 0.01 * x.shape[1] * x[:, :1].roll(1, -1), "what a row gives depends on its padding"),
    ],
    ids=["nothing", "padding", "company", "width"],
)
def test_one_part_in_a_hundred_is_seen(spoil, fault):
    model = base(BERT, noise=0.1)
    model.bert.pooler.register_forward_pre_hook(lambda _, args: (spoil(args[0]),))
    assert probe_sharing(model, ()).fault == fault


class Expert(nn.Module):
    """Gives a layer the first tokens of each row alone, as a router may."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(*x.shape[:-1], 48)
        y[:, 0] = self.layer(x[:, 0])
        return y


def test_a_layer_that_is_given_some_tokens_of_each_row_or_is_never_called_is_unpackable():
    model = base(BERT, noise=0.1)
    dense = model.bert.encoder.layer[0].intermediate
    dense.dense = Expert(dense.dense)
    model.bert.encoder.layer[0].spare = nn.Linear(32, 32)
    layer = "bert.encoder.layer.0"
    unfit = {f"{layer}.intermediate.dense.layer", f"{layer}.spare"}
    assert probe_sharing(model, [*unfit, f"{layer}.output.dense"]).unpackable == unfit


def test_of_a_base_that_cannot_be_probed_nothing_is_packable():
    model = base(SPARSE)
    names = layers_of(model)
    found = probe_sharing(model, names)
    assert found.unpackable == set(names)
    assert found.fault.startswith("it takes no made-up rows (ValueError: `attention_type` must not be block_sparse")
    assert model.config.attention_type == "block_sparse"


def test_a_head_that_is_given_more_than_rows_shares_no_pass():
    class Asking(nn.Linear):
        def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
            return super().forward(x)

    model = base(BERT, noise=0.1)
    head = Asking(32, 2)
    head.load_state_dict(model.classifier.state_dict())
    model.classifier = head
    assert probe_sharing(model, ()).fault == ""
    head.register_forward_pre_hook(lambda _, args: (*args, torch.ones(len(args[0]))))
    assert probe_sharing(model, ()).fault == "its head classifier is given something else than the batch's rows"
