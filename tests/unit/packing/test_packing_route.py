"""Which rows a layer computes for whom, and who is let into a round."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.packing.route import Block, Route
from loraxs_search.packing.wish import Wish, admit
from loraxs_search.records import Hyperparameters, TrialSpec

CPU = torch.device("cpu")


def runs(route: Route, *pair_of_seat: int | None) -> list[tuple[int, int, int, list[int]]]:
    return [(run.start, run.stop, run.pair, run.seats.tolist()) for run in route.runs(pair_of_seat)]


def test_neighbours_with_the_same_factors_are_one_run() -> None:
    route = Route([Block(0, 0, 2), Block(2, 2, 3), Block(3, 3, 5)], CPU)
    assert runs(route, 0, None, 0, 0) == [(0, 5, 0, [0, 0, 2, 3, 3])]
    assert runs(route, 0, None, 1, 1) == [(0, 2, 0, [0, 0]), (2, 5, 1, [2, 3, 3])]


def test_rows_of_slots_that_do_not_adapt_a_layer_are_in_no_run() -> None:
    route = Route([Block(0, 0, 2), Block(1, 2, 3), Block(2, 3, 5)], CPU)
    assert runs(route, 0, None, 0) == [(0, 2, 0, [0, 0]), (3, 5, 0, [2, 2])]
    assert runs(route, None, None, None) == []


def wish(trial_id: str) -> Wish:
    hyper = Hyperparameters(rank=1, target_modules=("m",), learning_rate=1.0, head_learning_rate=1.0)
    return Wish(TrialSpec(trial_id, {}, hyper), 1, None)


def test_trials_are_let_in_by_arrival_up_to_the_slots_and_once_each() -> None:
    a, b, again, c, d = wish("a"), wish("b"), wish("a"), wish("c"), wish("d")
    admitted, left = admit([a], [again, b, c, d], 3)
    assert admitted == [b, c]
    assert left == [again, d]
    assert admit([b, c], left, 3) == ([again], [d])


@given(st.lists(st.sampled_from("abcdefgh"), max_size=30), st.integers(1, 4), st.data())
def test_no_trial_starves_whoever_comes_and_goes(arrivals: list[str], num_slots: int, data: st.DataObject) -> None:
    """Whoever waits is passed by those only who came before, or whose own trial is in; all are served in the end."""
    active: list[Wish] = []
    waiting = [wish(name) for name in arrivals]
    served: list[Wish] = []
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
