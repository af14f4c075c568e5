"""`basis: gaussian`: A and B of a trial are drawn from its seed; alone, packed, stored and summed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.trials import train, unpacked
from torch import Tensor

from loraxs_search.base_model.load import load_model
from loraxs_search.errors import FactorMismatchError
from loraxs_search.methods import get_method
from loraxs_search.methods.loraxs import LoraXSLinear
from loraxs_search.tasks.kinds import classifier
from loraxs_search.trial.attach import attach, detach

LORA_XS = get_method("lora-xs")


def pairs(model: Any) -> Mapping[str, tuple[Tensor, Tensor]]:
    return {n: m.factor_pair("default") for n, m in model.named_modules() if isinstance(m, LoraXSLinear)}


def test_a_trials_seed_decides_a_and_b_and_the_weight_does_not(world):
    drawn = []
    for trial_id, seed in (("1", 5), ("2", 5), ("3", 6)):
        spec = world.spec(trial_id, basis="gaussian", rank=8, seed=seed)
        model = attach(world.model, spec)
        drawn.append(pairs(model))
        detach(model, spec)
    for name, (a, b) in drawn[0].items():
        assert torch.equal(a, drawn[1][name][0]) and torch.equal(b, drawn[1][name][1])
        assert not torch.isclose(a, drawn[2][name][0]).any() and not torch.isclose(b, drawn[2][name][1]).any()
    for side in zip(*drawn[0].values(), strict=True):
        numbers = torch.cat([each.flatten() * each.shape[1] ** 0.5 for each in side])  # of variance 1 / fan-in
        assert abs(float(numbers.mean())) < 0.05 and abs(float(numbers.std()) - 1) < 0.05


def test_a_stored_adapter_draws_them_again_and_knows_them(world, tmp_path, monkeypatch):
    spec = world.spec("1", basis="gaussian", rank=4, learning_rate=1e-2)
    pack = unpacked(world.model, world.factors)
    train(pack, [pack.join(spec, world.data)], 6)
    model = pack.base.model
    inputs = world.data.collate("validation", range(8)).inputs
    with torch.no_grad():
        expected = model(**inputs).logits
    for name, content in LORA_XS.files(model, ()).items():
        (tmp_path / name).write_bytes(content)
    pack.base.clear()
    assert list(LORA_XS.factors(spec.hyperparameters, {world.names[0]: (32, 32)})) == []
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "elsewhere"))
    with torch.no_grad():
        loaded = LORA_XS.load(load_model(world.base, classifier(2)), tmp_path, "cpu").eval()
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-5, atol=1e-6)
    config = tmp_path / "adapter_config.json"
    stored = json.loads(config.read_text())
    assert set(stored["factor_fingerprints"]) == set(world.names)
    config.write_text(json.dumps(stored | {"init_seed": stored["init_seed"] + 1}))
    with pytest.raises(FactorMismatchError):
        LORA_XS.load(load_model(world.base, classifier(2)), tmp_path, "cpu")
