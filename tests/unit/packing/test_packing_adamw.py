"""AdamW over all slots does to each tensor what `torch.optim.AdamW` does; it stands on private operations of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from loraxs_search.packing.pack import AdamWUpdate, adamw


class Trial(NamedTuple):
    rates: tuple[float, float]
    betas: tuple[float, float]
    decay: float
    limit: float


TRIALS = {  # by the seed of their numbers
    1: Trial((1e-2, 1e-3), (0.9, 0.99), 0.1, 1.0),
    2: Trial((5e-3, 1e-2), (0.8, 0.999), 0.0, 0.0),
    3: Trial((0.1, 1e-5), (0.0, 0.0), 0.1, 100.0),
}


def run(trials: Mapping[int, Trial], foreach: bool) -> list[tuple[Tensor, Tensor]]:
    """Take six steps at once with ours, and trial by trial with torch's; return the parameters of both."""
    made = []
    for seed, trial in trials.items():
        draw = torch.Generator().manual_seed(seed)
        ours = [torch.randn(3, 4, 4, generator=draw), torch.randn(5, generator=draw)]
        theirs = [p.clone().requires_grad_() for p in ours]
        moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in ours]
        groups = [{"params": [p], "lr": rate} for p, rate in zip(theirs, trial.rates, strict=True)]
        optimizer = torch.optim.AdamW(groups, betas=trial.betas, weight_decay=trial.decay)
        made.append((trial, draw, ours, theirs, moments, optimizer))
    for step in range(1, 7):
        updates = []
        for (rates, betas, decay, limit), draw, ours, theirs, moments, optimizer in made:
            for one, other in zip(ours, theirs, strict=True):
                one.grad = torch.randn(one.shape, generator=draw)
                other.grad = one.grad.clone()
            norm = float(torch.nn.utils.clip_grad_norm_(theirs, limit or float("inf")))
            optimizer.step()
            clip = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
            for p, own, rate in zip(ours, moments, rates, strict=True):
                updates.append(AdamWUpdate(p, *own, rate, betas, decay, clip, step))
        adamw(updates, foreach=foreach)
    return [pair for _, _, ours, theirs, *_ in made for pair in zip(ours, theirs, strict=True)]


either_way = pytest.mark.parametrize("foreach", [False, True])


@either_way
def test_each_trial_goes_as_with_an_optimizer_of_its_own_and_company_changes_no_bit(foreach):
    together = run(TRIALS, foreach)
    for ours, theirs in together:
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    alone = [pair for seed, trial in TRIALS.items() for pair in run({seed: trial}, foreach)]
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(together, alone, strict=True))


@either_way
def test_a_tensor_without_a_gradient_is_left_as_it_is(foreach):
    kept, moved = torch.ones(2), torch.ones(2)
    moved.grad = torch.ones(2)
    updates = [AdamWUpdate(p, torch.zeros(2), torch.zeros(2), 0.1, (0.9, 0.99), 0.1, 1.0, 1) for p in (kept, moved)]
    adamw(updates, foreach=foreach)
    assert kept.tolist() == [1, 1]
    assert moved.tolist() != [1, 1]
    adamw([], foreach=foreach)
