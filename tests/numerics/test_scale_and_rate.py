"""Under AdamW `scale` is a second learning rate: twice the one is twice the other, and a search needs only one.

The head has its own rate here, and nothing decays: decay pulls R to zero by the rate, whatever the scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.trials import make_spec

from loraxs_search.packing.host import TrialHost
from loraxs_search.search_space.load import load_space
from loraxs_search.trial.snapshot import Snapshot

SCALE, STEPS = 4.0, 20


def test_a_larger_scale_is_a_larger_learning_rate(tiny_space: Path, in_warm_home: Path) -> None:
    space = load_space(str(tiny_space))
    host = TrialHost(space.base_model, space.task, precision="float32")
    names = [module.name for module in host.info().modules]
    modules = [name for name in names if ".attention.self." not in name]  # gradients are next to nothing there

    def trained(scale: float, rate: float) -> Snapshot:
        changes: dict[str, Any] = {"scale": scale, "learning_rate": rate, "init_std": 1e-2 / scale}
        trial = make_spec("3", modules, max_steps=STEPS, weight_decay=0.0, max_grad_norm=1e9, **changes)
        return Snapshot.from_bytes(host.advance(trial, STEPS, None)[1])

    one, other, faster = trained(1.0, 2e-2), trained(SCALE, 2e-2 / SCALE), trained(SCALE, 2e-2)
    assert distance(one, other) < 0.15, "where a gradient is near zero, Adam's step is a matter of rounding"
    assert distance(one, faster) > 1.5
    assert other.reports[-1].metrics["loss"] == pytest.approx(one.reports[-1].metrics["loss"], rel=1e-4)


def distance(one: Snapshot, other: Snapshot) -> float:
    """Return how far the updates of the weights are apart, as a share of the first one's size; `other` has SCALE."""
    of_one, of_other = (
        torch.cat([each.parameters[name].flatten() for name in sorted(each.parameters) if "loraxs" in name])
        for each in (one, other)
    )
    return float(torch.linalg.vector_norm(SCALE * of_other - of_one) / torch.linalg.vector_norm(of_one))
