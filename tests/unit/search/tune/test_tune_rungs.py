from __future__ import annotations

import math
import pickle
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers.async_hyperband import _Bracket

from loraxs_search.search.tune.schedulers.rungs import OrderedBracket, Rung

SCORES = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.integers(0, 3).map(float)), max_size=40)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@given(SCORES, st.sampled_from([2, 3, 4, 6]))
def test_it_decides_as_rays_own_does(scores: list[float], factor: int) -> None:
    ours, rays = OrderedBracket(4, 64, factor), _Bracket(4, 64, factor, 0)
    for number, score in enumerate(scores):
        trial, step = SimpleNamespace(trial_id=str(number % 20)), 4 + 12 * (number // 20)
        assert ours.on_result(trial, step, score) == rays.on_result(trial, step, score)
    for (step, rung), (rays_step, recorded) in zip(ours._rungs, rays._rungs, strict=True):
        assert (step, dict(rung)) == (rays_step, recorded) or str(dict(rung)) == str(recorded)  # nan is not itself


def test_a_decision_costs_the_same_with_many_trials_behind_it() -> None:
    bracket = OrderedBracket(4, 64, 2)
    began = time.process_time()
    for number in range(20_000):
        bracket.on_result(SimpleNamespace(trial_id=str(number)), 4, number % 977)
    assert time.process_time() - began < 2, "some 20 microseconds each; Ray's takes a millisecond by then"


def test_a_rung_is_pickled_whole() -> None:
    rung = Rung()
    for number, score in enumerate([0.3, math.nan, 0.1]):
        rung[str(number)] = score
    again = pickle.loads(pickle.dumps(rung))
    assert list(again) == list(rung) and again.percentile(50) == rung.percentile(50) == 0.2
