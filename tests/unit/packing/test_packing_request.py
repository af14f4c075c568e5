"""Who is let into a round, and who is scored with whom."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.packing.host import AdvanceRequest, admit, scored_now
from loraxs_search.records.trial import Hyperparameters, TrialSpec


def request(trial_id: str, num_steps: int = 1) -> AdvanceRequest:
    hyper = Hyperparameters(rank=1, target_modules=("m",), learning_rate=1.0, head_learning_rate=1.0, max_steps=1000)
    made: Any = AdvanceRequest(TrialSpec(trial_id, {}, hyper), num_steps, None)
    made.slot = SimpleNamespace(step=0)
    return made


def play(comers: Sequence[tuple[str, int, int]], num_slots: int) -> list[tuple[int, list[str]]]:
    """Play rounds as a host does; return at which round who was scored together.

    Args:
        comers: Name, the round before which it comes, and its steps.
    """
    coming = [(number, request(name, num_steps)) for name, number, num_steps in comers]
    active, waiting, number = list[AdvanceRequest](), list[AdvanceRequest](), 0
    scored = list[tuple[int, list[str]]]()
    while active or waiting or any(start >= number for start, _ in coming):
        waiting += [one for start, one in coming if start == number]
        admitted, waiting = admit(active, waiting, num_slots)
        active += admitted
        for one in active:
            if one.steps_left:
                one.slot.step += 1
        if done := scored_now(active):
            scored.append((number, [one.spec.trial_id for one in done]))
            active = [one for one in active if one not in done]
            for one in waiting:
                one.may_start = True
        number += 1
        assert number < 10_000, "somebody waits for ever"
    return scored


def test_trials_are_let_in_by_arrival_up_to_the_slots_and_once_each():
    a, b, again, c, d = request("a"), request("b"), request("a"), request("c"), request("d")
    admitted, left = admit([a], [again, b, c, d], 3)
    assert admitted == [b, c]
    assert left == [again, d]
    assert admit([b, c], left, 3) == ([again], [d])
    going, late = request("a", 100), request("c", 200)
    assert admit([going], [late], 2) == ([], [late])
    late.may_start = True  # it waits for one score at most: others that report often would keep it out for ever
    assert admit([going], [late], 2) == ([late], [])


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 60)), min_size=1, max_size=24), st.integers(1, 6))
def test_every_trial_is_scored_once_whenever_it_comes(comers, num_slots):
    named = [(str(place), *comer) for place, comer in enumerate(comers)]
    names = [name for _, together in play(named, num_slots) for name in together]
    assert sorted(names) == sorted(name for name, *_ in named)


@pytest.mark.parametrize(
    ("comers", "num_slots", "scored"),
    [
        # One that comes soon after the others is scored with them; one that comes late begins when they are scored.
        ([("a", 0, 40), ("b", 0, 40), ("c", 10, 40)], 3, [(49, ["a", "b", "c"])]),
        ([("a", 0, 40), ("c", 11, 40)], 2, [(39, ["a"]), (79, ["c"])]),
        # One that reports sooner than all others does not wait.
        ([("a", 0, 40), ("c", 11, 10)], 2, [(20, ["c"]), (39, ["a"])]),
        # They come into step: c is more than ten steps behind a, so it waits, and d begins with it.
        ([("a", 0, 40), ("b", 10, 40), ("c", 20, 40), ("d", 30, 40)], 4, [(49, ["a", "b"]), (89, ["c", "d"])]),
    ],
)
def test_trials_in_step_are_scored_together(comers, num_slots, scored):
    assert play(comers, num_slots) == scored
