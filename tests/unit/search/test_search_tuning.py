"""When Tune's loop ends before its trials have."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from loraxs_search.search.tuning import LoopWatch, _StoppedError

PENDING, RUNNING = SimpleNamespace(status="PENDING"), SimpleNamespace(status="RUNNING")


def test_the_loop_ends_when_it_is_told_to() -> None:
    stop, turns = threading.Event(), list[int]()
    watch = LoopWatch(stop, lambda: turns.append(1))
    watch.on_step_begin(0, [RUNNING])
    stop.set()
    with pytest.raises(_StoppedError):
        watch.on_step_begin(1, [RUNNING])
    assert len(turns) == 2


def test_the_time_budget_ends_a_search_whose_trials_all_wait_for_nodes() -> None:
    def turn(deadline: float, *trials: object) -> None:
        LoopWatch(threading.Event(), lambda: None, deadline).on_step_begin(0, list(trials))

    turn(time.time() + 60, PENDING)
    turn(time.time() - 1, PENDING, RUNNING)  # those that run are stopped at their next report
    with pytest.raises(_StoppedError):
        turn(time.time() - 1, PENDING)
