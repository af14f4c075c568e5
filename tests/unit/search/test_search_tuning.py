"""When Tune's loop ends before its trials have, and how often a trial's process may be lost.

A node's death is one loss, however often the dead node is offered again.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from loraxs_search.search import tuning
from loraxs_search.search.tuning import ONE_LOSS_S, LoopWatch, _StoppedError

PENDING, RUNNING = SimpleNamespace(status="PENDING"), SimpleNamespace(status="RUNNING")


def allowed(losses_at: list[float], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many failures Tune allows a trial in all, after losses at these seconds."""
    trial = SimpleNamespace(trial_id="t", max_failures=3)
    watch = LoopWatch(lambda: False, lambda: None)
    for at in losses_at:
        monkeypatch.setattr(tuning.time, "monotonic", lambda now=at: now)
        watch.on_trial_recover(0, [], trial)
    return trial.max_failures


def test_losses_that_follow_closely_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert allowed([5.0], monkeypatch) == 3
    assert allowed([5.0, 6.0, 8.0, 5.0 + ONE_LOSS_S - 1], monkeypatch) == 3 + 3


def test_a_trial_that_is_always_lost_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten losses a minute for an hour are sixty losses, not none."""
    losses = [6.0 * n for n in range(600)]
    assert len(losses) - (allowed(losses, monkeypatch) - 3) == 60


def test_losses_far_apart_count_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert allowed([0.0, 100.0, 200.0], monkeypatch) == 3


def test_the_loop_ends_when_it_is_told_to() -> None:
    over, turns = [False], list[int]()
    watch = LoopWatch(lambda: over[0], lambda: turns.append(1))
    watch.on_step_begin(0, [RUNNING])
    over[0] = True
    with pytest.raises(_StoppedError):
        watch.on_step_begin(1, [RUNNING])
    assert len(turns) == 2


def test_the_time_budget_ends_a_search_whose_trials_all_wait_for_nodes() -> None:
    def turn(deadline: float, *trials: object) -> None:
        LoopWatch(lambda: False, lambda: None, deadline).on_step_begin(0, list(trials))

    turn(time.time() + 60, PENDING)
    turn(time.time() - 1, PENDING, RUNNING)  # those that run are stopped at their next report
    with pytest.raises(_StoppedError):
        turn(time.time() - 1, PENDING)
