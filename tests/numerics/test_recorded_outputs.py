"""What is computed stays what it was: a small base gives the numbers and tokens that were recorded, rows their tokens.

    PYTHONPATH=tests python tests/numerics/test_recorded_outputs.py tests/fixtures/engine_outputs.json

records anew, only where answers are meant to change; say so in the change.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.trials import DecoderWorld, made_up_rows

from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.search_space.load import load_space
from loraxs_search.tasks.encoded import TrainingBatches
from loraxs_search.tasks.kinds import GenerateRequest, Sampling
from loraxs_search.tasks.prepared import prepare
from loraxs_search.trial.snapshot import Snapshot

NUM_STEPS = 6


def outputs(folder: Path) -> dict[str, Any]:
    """Return what a pack of unlike trials learns, scores and writes, and the first of them by itself."""
    with use_factor_store(FactorStore(folder / "factors")):
        world = DecoderWorld(folder / "llama", "llama")
        trials = world.mixed_trials(init_std=0.3)
        pack = world.pack(num_workers=2)
        slots = [pack.join(spec, data) for spec, data in trials]
        prompts = replace(made_up_rows(9, 5), positions=None, targets=None)
        asked = {
            spec.name: GenerateRequest(prompts, np.arange(9), 12, sampling=Sampling(3, 0.7, 0.9) if i % 2 else None)
            for i, (spec, _) in enumerate(trials)
        }
        written = pack.answer(slots, asked)
        for _ in range(NUM_STEPS):
            assert pack.step(slots) == {}
        metrics = pack.evaluate(slots, "validation")
        packed = {slot.name: slot.snapshot() for slot in slots}
        pack.base.clear()
        alone = world.lone(*trials[0], NUM_STEPS)
    sure = {  # rows in which rounding decides about no token
        name: [own.tokens.row(i).tolist() if own.margins[i] > 1e-3 else [] for i in range(len(own.tokens))]
        for name, own in written.items()
    }
    states = {name: state(own) for name, own in packed.items()}
    return {"decoder": {"written": sure, "metrics": metrics, "states": states, "alone": state(alone)}}


def state(snapshot: Snapshot) -> dict[str, float]:
    """Return two numbers in which every number of a state has its part, for the adapter and its first moments."""
    named = [*snapshot.parameters.items(), *snapshot.moments.items()]
    found = {}
    for part, begins in (("r", "base_model"), ("exp_avg", "exp_avg/")):
        own = [value for name, value in sorted(named) if name.startswith(begins) and "loraxs_R" in name]
        flat = torch.cat([tensor.flatten().double() for tensor in own])
        wave = torch.cos(torch.arange(len(flat), dtype=torch.float64))
        found |= {f"{part} norm": float(flat.norm()), f"{part} wave": float(flat @ wave)}
    return found


TOLERANCE = 2e-4  # of other processors' kernels


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the numbers of nested records by their places."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, f"{place}/{key}")
    else:
        yield place, value


def test_trials_learn_write_and_score_as_they_did(tmp_path):
    recorded = json.loads((Path(__file__).parents[1] / "fixtures" / "engine_outputs.json").read_text())
    expected, found = dict(leaves(recorded)), dict(leaves(outputs(tmp_path)))
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        # A wave is a sum of numbers of both signs: its size is the norm's.
        size = expected[f"{place.removesuffix('wave')}norm"] if place.endswith(" wave") else max(1.0, abs(value))
        assert found[place] == pytest.approx(value, abs=TOLERANCE * size, rel=0), place


def test_movie_reviews_are_read_as_the_same_tokens_on_every_machine(quickstart_base):
    prepared = prepare(load_space("movie_reviews").task, load_tokenizer(quickstart_base))
    assert [prepared.num_rows(split) for split in ("train", "validation", "test")] == [3000, 500, 2000]
    # Made with datasets 5.2 and transformers 5.24; the content is fixed, so this is for every machine and version.
    assert prepared.data_fingerprint == "71b78786cb6093f177f10dda1c7f531ad6178feed93709265afb55b55267329b"
    assert 0.4 < prepared.labels("validation").mean() < 0.6
    rows = TrainingBatches(prepared.lengths("train"), 16, seed=0)
    batches = [prepared.collate("train", rows.at(step)) for step in range(188)]
    assert sum(batch.num_tokens for batch in batches) == prepared.lengths("train").sum()
    assert sum(batch.inputs["input_ids"].numel() for batch in batches) < 1.05 * prepared.lengths("train").sum()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        Path(sys.argv[1]).write_text(json.dumps(outputs(Path(scratch))) + "\n")
