from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toys import report

from loraxs_search.records.search import CheckpointSelection
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


def test_the_best_report_is_kept_and_of_equals_the_earlier():
    reports = [report("00000", step, score) for step, score in ((10, 0.7), (20, 0.9), (30, 0.7), (40, 0.9))]
    steps = [CheckpointSelection("accuracy", way, "best").select(reports).step for way in ("maximize", "minimize")]
    assert steps == [20, 10]
    assert CheckpointSelection("accuracy", "maximize").select(reports).step == 40
