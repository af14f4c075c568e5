"""AdamW over all slots does to each tensor what `torch.optim.AdamW` does; it stands on private operations of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loraxs_search.packing.pack import AdamWUpdate, adamw


@dataclass
class Trial:
    """Parameters of a made-up trial, and the same again for torch's own optimizer."""

    rates: tuple[float, float]
    betas: tuple[float, float]
    decay: float
    limit: float
    seed: int
    step: int = 0
    ours: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        self.ours = [torch.randn(3, 4, 4, generator=draw), torch.randn(5, generator=draw)]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.ours]
        self.theirs = [p.clone().requires_grad_() for p in self.ours]
        groups = [{"params": [p], "lr": rate} for p, rate in zip(self.theirs, self.rates, strict=True)]
        self.optimizer = torch.optim.AdamW(groups, betas=self.betas, weight_decay=self.decay)
        self.draw = draw

    def draw_gradients(self) -> None:
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            ours.grad = torch.randn(ours.shape, generator=self.draw)
            theirs.grad = ours.grad.clone()

    def updates(self, norm: float) -> list[AdamWUpdate]:
        self.step += 1
        clip = min(1.0, self.limit / (norm + 1e-6)) if self.limit else 1.0
        return [
            AdamWUpdate(p, *moments, rate, self.betas, self.decay, clip, self.step)
            for p, moments, rate in zip(self.ours, self.moments, self.rates, strict=True)
        ]

    def expected_step(self) -> Tensor:
        norm = torch.nn.utils.clip_grad_norm_(self.theirs, self.limit or float("inf"))
        self.optimizer.step()
        return norm


def run(trials: Sequence[Trial], num_steps: int, foreach: bool) -> None:
    for _ in range(num_steps):
        for trial in trials:
            trial.draw_gradients()
        norms = [float(trial.expected_step()) for trial in trials]
        updates = [update for trial, norm in zip(trials, norms, strict=True) for update in trial.updates(norm)]
        adamw(updates, foreach=foreach)


either_way = pytest.mark.parametrize("foreach", [False, True])


@either_way
@settings(max_examples=25, deadline=None)
@given(
    trials=st.lists(
        st.builds(
            Trial,
            rates=st.tuples(st.floats(1e-5, 0.1), st.floats(1e-5, 0.1)),
            betas=st.tuples(st.floats(0, 0.95), st.floats(0, 0.999)),
            decay=st.sampled_from([0.0, 0.1]),
            limit=st.sampled_from([0.0, 1.0, 100.0]),
            seed=st.integers(0, 1000),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_each_trial_goes_as_with_an_optimizer_of_its_own(trials, foreach):
    run(trials, 6, foreach)
    for trial in trials:
        for ours, theirs in zip(trial.ours, trial.theirs, strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@either_way
def test_company_changes_no_bit(foreach):
    def make() -> list[Trial]:
        return [Trial((1e-2, 1e-3), (0.9, 0.99), 0.1, 1.0, seed=1), Trial((5e-3, 1e-2), (0.8, 0.999), 0.0, 0.0, seed=2)]

    together, alone = make(), make()
    run(together, 4, foreach)
    for trial in alone:
        run([trial], 4, foreach)
    for one, other in zip(together, alone, strict=True):
        assert all(map(torch.equal, one.ours, other.ours))


@either_way
def test_a_tensor_without_a_gradient_is_left_as_it_is(foreach):
    kept, moved = torch.ones(2), torch.ones(2)
    moved.grad = torch.ones(2)
    moments = [torch.zeros(2) for _ in range(4)]
    adamw(
        [
            AdamWUpdate(kept, moments[0], moments[1], 0.1, (0.9, 0.99), 0.1, 1.0, 1),
            AdamWUpdate(moved, moments[2], moments[3], 0.1, (0.9, 0.99), 0.1, 1.0, 1),
        ],
        foreach=foreach,
    )
    assert kept.tolist() == [1, 1]
    assert moved.tolist() != [1, 1]
    adamw([], foreach=foreach)
