"""Who is let into a round, and who is scored with whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.packing.host import AdvanceRequest, admit, scored_now
from loraxs_search.records.trial import Hyperparameters, TrialSpec


def request(trial_id: str, num_steps: int = 1) -> AdvanceRequest:
    hyper = Hyperparameters(rank=1, target_modules=("m",), learning_rate=1.0, head_learning_rate=1.0, max_steps=1000)
    made: Any = AdvanceRequest(TrialSpec(trial_id, {}, hyper), num_steps, None)
    made.slot = SimpleNamespace(step=0)
    return made


def play(arrivals: dict[int, list[AdvanceRequest]], num_slots: int) -> list[tuple[int, list[str]]]:
    """Play rounds as a host does; return at which round who was scored together.

    Args:
        arrivals: Round to who comes before it.
    """
    active: list[AdvanceRequest] = []
    waiting: list[AdvanceRequest] = []
    scored: list[tuple[int, list[str]]] = []
    number = 0
    while active or waiting or number <= max(arrivals):
        waiting += arrivals.get(number, [])
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


@given(st.lists(st.sampled_from("abcdefgh"), max_size=30), st.integers(1, 4), st.data())
def test_no_trial_starves_whoever_comes_and_goes(arrivals, num_slots, data):
    """Whoever waits is passed by those only who came before, or whose own trial is in; all are served in the end."""
    active: list[AdvanceRequest] = []
    waiting = [request(name) for name in arrivals]
    served: list[AdvanceRequest] = []
    while active or waiting:
        before = list(waiting)
        admitted, waiting = admit(active, waiting, num_slots)
        assert sorted(map(id, admitted + waiting)) == sorted(map(id, before))
        inside = [w.spec.name for w in active + admitted]
        assert len(set(inside)) == len(inside) <= num_slots
        if waiting and len(inside) < num_slots:
            assert all(w.spec.name in inside for w in waiting)
        for late in admitted:
            passed = before[: before.index(late)]
            assert all(w in admitted or w.spec.name in inside for w in passed)
        active += admitted
        assert active
        done = data.draw(st.sampled_from(active))
        active.remove(done)
        served.append(done)
    assert len(served) == len(arrivals)


def test_a_trial_that_comes_soon_after_the_others_is_scored_with_them():
    assert play({0: [request("a", 40), request("b", 40)], 10: [request("c", 40)]}, 3) == [(49, ["a", "b", "c"])]


def test_a_trial_that_comes_late_begins_when_the_others_are_scored():
    assert play({0: [request("a", 40)], 11: [request("c", 40)]}, 2) == [(39, ["a"]), (79, ["c"])]


def test_a_trial_waits_for_one_score_at_most_whoever_trains_on():
    """Others that report often would keep it out for ever."""
    going, late = request("a", 100), request("c", 200)
    assert admit([going], [late], 2) == ([], [late])
    late.may_start = True
    assert admit([going], [late], 2) == ([late], [])


def test_a_trial_that_reports_sooner_than_all_others_does_not_wait():
    assert play({0: [request("a", 40)], 11: [request("c", 10)]}, 2) == [(20, ["c"]), (39, ["a"])]


def test_trials_that_start_one_after_another_come_into_step():
    """The third is more than ten steps behind the first: it waits, and the fourth begins with it."""
    arrivals = {10 * place: [request(name, 40)] for place, name in enumerate("abcd")}
    assert play(arrivals, 4) == [(49, ["a", "b"]), (89, ["c", "d"])]


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 60)), min_size=1, max_size=24),
    st.integers(1, 6),
)
def test_every_trial_is_scored_once_whenever_it_comes(comers, num_slots):
    arrivals: dict[int, list[AdvanceRequest]] = {}
    for place, (number, num_steps) in enumerate(comers):
        arrivals.setdefault(number, []).append(request(str(place), num_steps))
    names = [name for _, together in play(arrivals, num_slots) for name in together]
    assert sorted(names) == sorted(str(place) for place in range(len(comers)))
