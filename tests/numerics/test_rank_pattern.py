"""Rank patterns: layers of unlike rank, alone, packed, stored and as plain LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from loraxs_search.base_model import load_model
from loraxs_search.methods import get_method
from loraxs_search.methods.loraxs import export_lora, use_factor_store
from loraxs_search.records import LinearModule
from loraxs_search.tasks.kinds import classifier
from loraxs_search.trial import TrialRun, attach, detach

LORA_XS = get_method("lora-xs")


def test_packed_with_others_they_equal_lone_trials(world: Any) -> None:
    specs = [
        world.spec("11", rank=8, rank_pattern="upper", weight_decay=0.1),
        world.spec("12", rank=4, rank_pattern="lower", sigma="sqrt", basis="random"),
        world.spec("13", rank=8, rank_pattern="ends", max_grad_norm=0.01, target_modules=tuple(world.names[1::2])),
        *world.mixed_specs()[:3],
    ]
    pack = world.pack(num_workers=2)
    slots = world.join(pack, specs)
    for _ in range(20):
        assert pack.step(slots) == {}
    assert len({r.shape[0] for r in slots[0].adapter.named(slots[0].adapter.tensors).values()}) == 2
    world.check_each_is_as_alone(pack, slots, 20, 1e-5)


@pytest.mark.parametrize("pattern", ["upper", "middle"])
def test_stored_exported_and_counted(world: Any, tmp_path: Path, pattern: str) -> None:
    spec = world.spec("1", rank=6, rank_pattern=pattern, learning_rate=1e-2)
    with use_factor_store(world.factors):
        model = attach(world.model, spec)
    TrialRun(spec, model, world.data, torch.device("cpu")).advance(8)
    inputs = world.data.collate("validation", range(8)).inputs
    with torch.no_grad():
        expected = model(**inputs).logits
    files, measured = LORA_XS.files(model, ()), LORA_XS.measure(model)
    export_lora(model, "default", tmp_path / "lora")
    detach(model, spec)
    modules = [LinearModule(m.name, m.in_features, m.out_features) for m in world.modules]
    head = {name: tuple(p.shape) for name, p in world.model.named_parameters() if name.startswith("classifier")}
    assert LORA_XS.size(LORA_XS.params(spec.hyperparameters), modules, head, {}) == measured
    assert measured.r_parameters <= 36 * len(modules)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with torch.no_grad(), use_factor_store(world.factors):
        loaded = LORA_XS.load(load_model(world.base, classifier(2)), tmp_path, "cpu").eval()
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-5, atol=1e-6)
        plain = PeftModel.from_pretrained(load_model(world.base, classifier(2)), str(tmp_path / "lora")).eval()
        torch.testing.assert_close(plain(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


def test_resumed_in_a_pack_is_uninterrupted(world: Any) -> None:
    spec = world.spec("1", rank=5, rank_pattern="lower")
    half, whole = world.lone(spec, 5), world.lone(spec, 10)
    pack = world.pack()
    (slot,) = world.join(pack, [spec], [half])
    for _ in range(5):
        assert pack.step([slot]) == {}
    assert world.distance(slot.snapshot(), whole) < 1e-5
