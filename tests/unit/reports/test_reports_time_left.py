"""How many steps are still to come, from how often trials went on so far."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.cli._live import sparkline
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.search_state import Pace, expected_steps

RUNNING, COMPLETE, PRUNED, FAIL = TrialState


@pytest.mark.parametrize(
    ("trials", "plan", "steps"),  # plan: trials, steps of each, steps between reports
    [
        ([], (10, 100, 40), 1000),
        # To step 20 all, beyond it 3 of 4, beyond step 40 one of two (the one that runs there has passed it), then all.
        ([(20, PRUNED), (80, COMPLETE), (40, PRUNED), (40, RUNNING)], (6, 80, 20), 220 + 2 * (20 + 15 + 15)),
        ([(20, FAIL)], (2, 80, 20), 20 + 80),  # it says nothing of the others
        ([(40, RUNNING)], (1, 50, 20), 50),  # the last report comes at the last step
    ],
)
def test_the_share_that_went_on_is_expected_to_go_on(
    trials: list[tuple[int, TrialState]], plan: tuple[int, int, int], steps: float
) -> None:
    assert expected_steps(trials, *plan) == pytest.approx(steps)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([RUNNING, COMPLETE, PRUNED, FAIL])), max_size=12),
    st.integers(0, 20),
)
def test_the_estimate_lies_between_what_is_done_and_what_is_possible(
    given_trials: list[tuple[int, TrialState]], more: int
) -> None:
    trials = [(80 if state is COMPLETE else 20 * rung, state) for rung, state in given_trials]
    running = sum(state is RUNNING for _, state in trials)
    done = sum(steps for steps, _ in trials)
    expected = expected_steps(trials, len(trials) + more, 80, 20)
    assert done + 20 * more <= expected <= done + 80 * (running + more) + 1e-9


def test_a_pace_is_what_was_done_over_the_time_it_took() -> None:
    pace = Pace(100.0)
    assert pace.per_s() is None
    pace.add(110.0, 20)
    pace.add(120.0, 20)
    assert (pace.per_s(), pace.per_s(140.0)) == (2.0, 1.0)


def test_a_window_forgets() -> None:
    pace = Pace(0.0, window_s=60.0)
    pace.add(10.0, 600)
    assert pace.per_s() == 60.0
    pace.add(100.0, 60)
    assert pace.per_s() == 1.0
    assert pace.per_s(1000.0) == 0.0


def test_bars_stand_between_the_lowest_and_the_highest() -> None:
    assert sparkline([0.0, 0.5, 1.0], 0.0, 1.0, width=8) == "▁▅█"
    assert sparkline([0.1] * 20, 0.0, 1.0, width=8) == "▁" * 8
    assert sparkline([0.5], 0.5, 0.5, width=8) == "▁"
    assert sparkline([float("nan"), -1.0, 2.0], 0.0, 1.0, width=8) == "▁▁█"
    assert sparkline([0.0, 1.0], 0.0, 1.0, width=8, ascii_only=True).isascii()
    assert sparkline([], 0.0, 0.0, width=8) == ""
