from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.records.trial import Hyperparameters


def scheduled(max_steps: int, warmup: float, schedule: str) -> Hyperparameters:
    steps = {"max_steps": max_steps, "warmup_ratio": warmup, "lr_schedule": schedule}
    return Hyperparameters((), 1e-3, 1e-3, **steps)


@given(
    max_steps=st.integers(1, 500),
    warmup=st.floats(0, 0.9),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
    data=st.data(),
)
def test_the_factor_rises_then_never_rises_again_and_stays_in_0_1(max_steps, warmup, schedule, data):
    factors = [scheduled(max_steps, warmup, schedule).lr_factor(step) for step in range(max_steps)]
    peak = math.ceil(warmup * max_steps)
    assert all(0 < f <= 1 for f in factors)
    assert all(a < b for a, b in pairwise(factors[:peak]))
    assert all(a >= b for a, b in pairwise(factors[peak:]))


def test_known_values():
    values = [scheduled(10, 0.1, *at).lr_factor(step) for *at, step in (("linear", 0), ("linear", 5), ("cosine", 5))]
    assert values == pytest.approx([0.5, 5 / 9, 0.5 + 0.5 * math.cos(math.pi * 4 / 9)])
    assert scheduled(10, 0.1, "constant").lr_factor(9) == 1.0
