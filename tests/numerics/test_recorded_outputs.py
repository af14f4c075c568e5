"""What is computed stays what it was: a small base gives the numbers and tokens that were recorded.

    PYTHONPATH=tests python tests/numerics/test_recorded_outputs.py tests/fixtures/engine_outputs.json

records anew, only where answers are meant to change; say so in the change.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.decoders import DecoderWorld, made_up_rows

from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.tasks.kinds import GenerateRequest, Sampling
from loraxs_search.trial.snapshot import Snapshot

NUM_STEPS = 6


def decoder(folder: Path, family: str) -> dict[str, Any]:
    """Return what a pack of unlike trials learns, scores and writes, and the first of them by itself."""
    world = DecoderWorld(folder, family)
    trials = [
        (replace(spec, hyperparameters=replace(spec.hyperparameters, init_std=0.3)), data)
        for spec, data in world.mixed_trials()
    ]
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
    return {
        "written": {name: _sure(own) for name, own in written.items()},
        "metrics": metrics,
        "states": {name: _state(own) for name, own in packed.items()},
        "alone": _state(world.lone(*trials[0], NUM_STEPS)),
    }


def _state(snapshot: Snapshot) -> dict[str, float]:
    """Return two numbers in which every number of a state has its part, for the adapter and its first moments."""
    parts = {
        "r": [value for name, value in sorted(snapshot.parameters.items()) if "loraxs_R" in name],
        "exp_avg": [
            value
            for name, value in sorted(snapshot.moments.items())
            if name.startswith("exp_avg/") and "loraxs" in name
        ],
    }
    return {f"{name} {key}": value for name, own in parts.items() for key, value in _digest(*own).items()}


def _digest(*tensors: torch.Tensor) -> dict[str, float]:
    flat = torch.cat([tensor.flatten().double() for tensor in tensors])
    wave = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    return {"norm": float(flat.norm()), "wave": float(flat @ wave)}


def _sure(written: Any) -> list[list[int]]:
    """Return the tokens of rows in which rounding decides about none."""
    return [written.tokens.row(i).tolist() if written.margins[i] > 1e-3 else [] for i in range(len(written.tokens))]


RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "engine_outputs.json").read_text())
TOLERANCE = 2e-4  # of other processors' kernels


def check(actual: Any, recorded: Any, place: str = "") -> None:
    """Assert that everything is the same, numbers within the tolerance."""
    if isinstance(recorded, dict):
        assert actual.keys() == recorded.keys(), place
        for name, value in recorded.items():
            if name.endswith(" wave") or name == "wave":  # a sum of numbers of both signs: its size is the norm's
                norm = abs(recorded[f"{name.removesuffix('wave')}norm"])
                assert math.isclose(actual[name], value, abs_tol=TOLERANCE * norm), (place, name)
            else:
                check(actual[name], value, f"{place}/{name}")
    elif isinstance(recorded, list):
        assert len(actual) == len(recorded), place
        for number, value in enumerate(recorded):
            check(actual[number], value, f"{place}/{number}")
    elif isinstance(recorded, float):
        assert math.isclose(actual, recorded, rel_tol=TOLERANCE, abs_tol=TOLERANCE), (place, actual, recorded)
    else:
        assert actual == recorded, place


def outputs(folder: Path) -> dict[str, Any]:
    """Return all outputs; `folder` is empty."""
    with use_factor_store(FactorStore(folder / "factors")):
        return {"decoder": decoder(folder / "llama", "llama")}


def test_trials_learn_write_and_score_as_they_did(tmp_path):
    check(outputs(tmp_path), RECORDED)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        Path(sys.argv[1]).write_text(json.dumps(outputs(Path(scratch))) + "\n")
