"""A cache that is written in place holds what the library's own holds; a sequence ends where a stop string does."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.bases import families, language_model
from support.trials import DECODERS
from transformers import PreTrainedModel

from loraxs_search.base_model.attention import use_padded_attention
from loraxs_search.engine.generation import Decoding, OpenSequence
from loraxs_search.errors import BaseModelError
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import GenerateRequest


@pytest.mark.parametrize("stop", ["c", "bc", "abc"])
def test_a_stop_string_may_end_with_the_first_character_of_a_piece(stop: str) -> None:
    letters: Any = SimpleNamespace(decode=lambda ids, **_: "".join(map(chr, ids)))
    prompt = EncodedRows(Ragged.of([[1]], np.int32))
    row = OpenSequence(GenerateRequest(prompt, np.array([0]), 9, (stop,)), 0, letters, ())
    for letter in "xabc":
        row.add(torch.zeros(1), ord(letter), 1.0)
    assert (row.text, row.ended) == ("xabc".removesuffix(stop), True)


@pytest.mark.parametrize("family", families(["llama", "qwen3", "mistral", "gemma"]))
@torch.inference_mode()
def test_token_by_token_gives_the_states_of_whole_rows(family):
    model = language_model(DECODERS[family](), noise=0)
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
        Decoding.check(language_model(DECODERS[family](), noise=0).to(dtype))


@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.float32), ("mamba", torch.bfloat16)])
def test_a_decoder_that_does_not_read_its_cache_is_refused(family, dtype, monkeypatch):
    start = Decoding.__init__

    def started(self: Decoding, model: PreTrainedModel) -> None:
        start(self, model)
        self._cache_argument = "cache_that_nobody_reads"

    monkeypatch.setattr(Decoding, "__init__", started)
    with pytest.raises(BaseModelError, match="does not read tokens one by one as it reads them at once"):
        Decoding.check(language_model(DECODERS[family](), noise=0).to(dtype))
