"""Prompts of unlike lengths are computed in passes of their own, and rows go on as if each were alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.decoders import VOCABULARY, DecoderWorld, tokenizer
from support.families import families
from support.trials import write

from loraxs_search.engine import generation
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import GenerateRequest
from loraxs_search.trial.attach import attach, detach


@pytest.mark.parametrize("family", families(["llama", "qwen3", "mistral", "gemma2", "gpt2"]))
@pytest.mark.parametrize("alike", [0, 12])
def test_rows_of_several_passes_go_on_as_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, alike: int
) -> None:
    monkeypatch.setattr(generation, "RUN_TOKENS", 4)
    world, random, widths = DecoderWorld(tmp_path, family), np.random.default_rng(0), list[int]()
    shared = random.integers(4, VOCABULARY, alike)
    ids = [np.append(shared, random.integers(4, VOCABULARY, size)) for size in (30, 2, 9, 31, 1, 2, 9, 10, 30, 3)]
    source = EncodedRows(Ragged.of(ids, np.int32))
    with use_factor_store(world.factors):
        spec = world.spec("1", init_std=0.3, scale=2.0)
        model: Any = attach(world.model, spec)
    handle = world.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: widths.append(args[0].shape[1])
    )
    actual = write(model, GenerateRequest(source, np.arange(10), 9), tokenizer())
    handle.remove()
    alone = [write(model, GenerateRequest(source, np.array([row]), 9), tokenizer()) for row in range(10)]
    detach(model, spec)
    assert sum(width > 1 for width in widths) >= 3
    assert widths[-1] == 1 and len(set(actual.margins.tolist())) > 5
    for row in np.flatnonzero(actual.margins > 1e-4):
        assert actual.tokens.row(row).tolist() == alone[row].tokens.row(0).tolist()
        assert actual.margins[row] == pytest.approx(alone[row].margins[0], abs=1e-4)
