"""A cache that is written in place holds what the library's own holds."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.decoders import DECODERS
from support.families import families
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from loraxs_search.base_model.attention import use_padded_attention
from loraxs_search.engine.generation import Decoding, _GrowingLayer
from loraxs_search.errors import BaseModelError


@pytest.mark.parametrize("turned", [False, True])
def test_rows_that_leave_come_twice_or_grow_keep_their_numbers(turned):
    torch.manual_seed(0)
    ours, theirs = _GrowingLayer(turned), DynamicCache().layer_class_to_replicate()  # type: ignore[misc]
    for length in (5, 1, 1, 3, *[1] * 70):
        keys, values = torch.randn(2, len(ours.keys) if length == 1 else 4, 2, length, 8).unbind()
        seen = ours.update(keys, values)
        for actual, expected in zip(seen, theirs.update(keys, values), strict=True):
            assert torch.equal(actual[:, :, : expected.shape[2]], expected)
            assert not actual[:, :, expected.shape[2] :].any()
    assert ours.get_seq_length() == 80
    for rows in ([3, 0, 2], [2, 1], [1, 1, 0, 0, 1], [4]):
        ours.reorder_cache(torch.tensor(rows))
        theirs.reorder_cache(torch.tensor(rows))
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


@pytest.mark.parametrize("turned", [False, True])
def test_rows_fork_join_and_lose_their_first_tokens(turned):
    layer, (keys, values) = _GrowingLayer(turned), torch.randn(2, 2, 2, 5, 8).unbind()
    layer.update(keys, values)
    for rows in ([1, 0, 1], [0], [1, 0]):
        other = layer.forked(torch.tensor(rows))
        assert torch.equal(other.keys, keys[rows]) and torch.equal(other.values, values[rows])
        other.update(*torch.randn(2, len(rows), 2, 1, 8))
        other.reorder_cache(torch.tensor([0]))
        assert torch.equal(other.keys[:, :, :5], keys[rows[:1]])
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
    short, more = torch.randn(2, 1, 2, 3, 8), torch.randn(2, 3, 2, 70, 8)
    behind = _GrowingLayer(turned)
    behind.update(*short)
    joined = _GrowingLayer.joined([layer, behind], [torch.tensor([2, 0]), torch.tensor([1])])
    joined.update(*more)
    assert joined.get_seq_length() == 75
    for part, long, which in ((joined.keys, keys, 0), (joined.values, values, 1)):
        assert torch.equal(part[[2, 0], :, :5], long)
        assert torch.equal(part[[1], :, 2:5], short[which]) and not part[1, :, :2].any()
        assert torch.equal(part[:, :, 5:], more[which])
    joined.reorder_cache(torch.tensor([2, 0]))
    joined = joined.forked(torch.arange(2), 61)
    last = torch.randn(2, 2, 2, 1, 8)
    joined.update(*last)
    assert joined.get_seq_length() == 15
    for part, which in ((joined.keys, 0), (joined.values, 1)):
        assert torch.equal(part[:, :, :14], more[which][[2, 0], :, 56:])
        assert torch.equal(part[:, :, 14:], last[which])


@pytest.mark.parametrize("family", families(["llama", "qwen3", "mistral", "gemma"]))
@torch.inference_mode()
def test_token_by_token_gives_the_states_of_whole_rows(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(DECODERS[family](), attn_implementation="eager").eval()
    ids = torch.randint(4, 60, (3, 50))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions)[0]
    assert use_padded_attention(model)
    decoding = Decoding(model)
    cuts = [0, 6, 9, *range(10, 51)]
    parts = [decoding.compute(ids[:, a:b], mask[:, a:b]) for a, b in itertools.pairwise(cuts)]
    torch.testing.assert_close(torch.cat(parts, 1)[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", families(DECODERS))
def test_a_decoder_that_continues_as_it_reads_whole_rows_passes(family):
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(DECODERS[family]()).eval()
        Decoding.check(model.to(dtype))


@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.float32), ("mamba", torch.bfloat16)])
def test_a_decoder_that_does_not_read_its_cache_is_refused(family, dtype, monkeypatch):
    start = Decoding.__init__

    def started(self: Decoding, model: PreTrainedModel) -> None:
        start(self, model)
        self._cache_argument = "cache_that_nobody_reads"

    monkeypatch.setattr(Decoding, "__init__", started)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(DECODERS[family]()).eval().to(dtype)
    with pytest.raises(BaseModelError, match="does not read tokens one by one as it reads them at once"):
        Decoding.check(model)
