"""What is computed stays what it was: small bases give the numbers, answers and texts that were recorded.

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
from support import toy_language
from support.decoders import LANGUAGE_MODEL, DecoderWorld, made_up_rows
from support.trials import written_by

from loraxs_search import AdapterBank
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loraxs import LoraXSConfig, use_factor_store
from loraxs_search.records.task import BaseModelRef, DataSource
from loraxs_search.tasks.kinds import GenerateRequest, Sampling
from loraxs_search.tasks.prepared import prepare
from loraxs_search.trial.attach import attach, detach
from loraxs_search.trial.evaluate import score_rows
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


def kinds(folder: Path) -> dict[str, Any]:
    """Return how a pack and a lone trial score tasks that write and that choose, and what a bank answers."""
    toy_language.save_base(folder)
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    for split, size in {"train": 60, "validation": 20, "test": 12}.items():
        words = [(toy_language.WORDS[i % 20], toy_language.WORDS[(7 * i + 3) % 20]) for i in range(size)]
        rows = [{"words": f"{a} {b}", "turned": f"{b} {a}", "label": i % 3} for i, (a, b) in enumerate(words)]
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = locate(BaseModelRef(str(folder)))
    tasks = [make(source=DataSource(data_files=files)) for make in (toy_language.writing, toy_language.choosing)]
    data = [prepare(task.for_candidates, load_tokenizer(base)) for task in tasks]
    world = DecoderWorld.of(base, data)
    pack = world.pack(max_tokens=400, num_workers=2)
    trials = [(world.spec(str(i), rank=4 + 2 * i, init_std=0.1, learning_rate=0.02), data[i % 2]) for i in range(4)]
    slots = [pack.join(spec, own) for spec, own in trials]
    for _ in range(NUM_STEPS):
        assert pack.step(slots) == {}
    metrics = pack.evaluate(slots, "test")
    pack.base.clear()
    alone = {}
    for spec, own in trials[:2]:
        with use_factor_store(world.factors):
            model = attach(world.model, spec)
        scores = score_rows(model, own, "test", np.arange(12))
        alone[spec.name] = {"answers": scores.predictions.tolist(), "losses": scores.losses.tolist()}
        detach(model, spec)
    return {"metrics": metrics, "alone": alone, "bank": _bank(base, tasks)}


def _bank(base: Any, tasks: Any) -> dict[str, Any]:
    bank, draw = AdapterBank(base, task_model=LANGUAGE_MODEL), torch.Generator().manual_seed(1)
    modules = [module.name for module in linear_modules(base, LANGUAGE_MODEL)]
    for number, (rank, own) in enumerate([(4, modules), (2, modules[:5]), (4, modules), (8, modules[1::2])]):
        tensors = {f"base_model.model.{name}.loraxs_R": torch.randn(rank, rank, generator=draw) * 0.5 for name in own}
        bank.add(str(number), LoraXSConfig(r=rank, target_modules=list(own)), tasks[number % 2], tensors)
    names = [str(number % 4) for number in range(12)]
    texts = [" ".join(f"w{(5 * number + i) % 20}" for i in range(1 + number % 6)) for number in range(12)]
    answers = bank.predict(names, texts)
    rows = {"input_ids": torch.arange(4, 16).view(4, 3), "attention_mask": torch.ones(4, 3, dtype=torch.long)}
    return {
        "answers": [[answer.label, answer.score] for answer in answers],
        "written": written_by(bank, [*names[:6], None], [f"say {text}" for text in texts[:7]], 6),
        "drawn": written_by(bank, ["0"] * 4, texts[:4], 6, sampling=Sampling(2, 1.5)),
        "logits": [_digest(row) for row in bank.logits(["0", "1", None, "3"], rows)],
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
        return {"decoder": decoder(folder / "llama", "llama"), "kinds": kinds(folder / "kinds")}


def test_trials_learn_write_and_score_and_a_bank_answers_as_they_did(tmp_path):
    check(outputs(tmp_path), RECORDED)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        Path(sys.argv[1]).write_text(json.dumps(outputs(Path(scratch))) + "\n")
