"""The front of a study."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.cli._output import print_leaderboard
from loraxs_search.pareto import dominates
from loraxs_search.records import (
    AdapterSize,
    CheckpointSelection,
    DataSource,
    FrontTrial,
    Task,
    TrialRecord,
    TrialReport,
    TrialState,
)
from loraxs_search.reports.leaderboard import front, leaderboard

TASK = Task("t", "regression", DataSource(), "text", "label", "pearson", "maximize", ("pearson", "mse"))
SELECTION = CheckpointSelection("pearson", "maximize")
BOTH = ("pearson", "stored_bytes")


def trial(number: int, score: float, stored: int, state: TrialState = TrialState.COMPLETE) -> TrialRecord:
    size, name = AdapterSize(16, 4, stored), f"{number:05d}"
    reports = [TrialReport(name, step, {"pearson": score / 2 * step}, 1.0, 1.0, 10, size) for step in (1, 2)]
    return TrialRecord(name, {}, state, "why", tuple(reports), started_at=2.0, ended_at=9.0)


TRIALS = [
    trial(0, 0.9, 9000),
    trial(1, 0.8, 3000),
    trial(2, 0.7, 5000),
    trial(3, 0.5, 1000),
    trial(4, 0.6, 500, TrialState.PRUNED),
    trial(5, 0.8, 3000),
]


def test_the_front_is_of_complete_trials_by_bytes_and_equal_ones_are_all_on_it() -> None:
    assert [it.trial_id for it in front(TRIALS, SELECTION)] == ["00003", "00001", "00005", "00000"]
    assert front(TRIALS, SELECTION)[0] == FrontTrial("00003", 0.5, 1000)
    worst_first = front(TRIALS, replace(SELECTION, direction="minimize"))
    assert [it.trial_id for it in worst_first] == ["00003"]
    assert front([], SELECTION) == []


def test_the_step_that_is_kept_counts() -> None:
    rising = [trial(0, 0.9, 900), trial(1, 1.0, 1000)]
    falling = [replace(t, reports=(t.reports[1], replace(t.reports[0], step=3))) for t in rising]
    assert [it.score for it in front(falling, replace(SELECTION, checkpoint="best"))] == [0.9, 1.0]
    assert [it.score for it in front(falling, SELECTION)] == [0.45, 0.5]


@given(st.lists(st.tuples(st.integers(0, 5).map(float), st.integers(1, 5)), max_size=15), st.randoms())
def test_nothing_beats_a_trial_of_the_front_and_something_beats_each_other(
    points: list[tuple[float, int]], order: random.Random
) -> None:
    trials = [trial(number, *point) for number, point in enumerate(points)]
    on_front = {it.trial_id for it in front(trials, SELECTION)}
    for number, point in enumerate(points):
        assert (f"{number:05d}" in on_front) != any(dominates(other, point) for other in points)
    mixed = order.sample(trials, len(trials))
    assert front(mixed, SELECTION) == front(trials, SELECTION), "whatever the order they come in"


def test_the_leaderboard_marks_the_front_where_both_were_searched_for(capsys: pytest.CaptureFixture[str]) -> None:
    rows = leaderboard(TRIALS, TASK, objectives=BOTH)
    assert {row.trial_id for row in rows if row.on_front} == {"00003", "00001", "00005", "00000"}
    assert {row.on_front for row in leaderboard(TRIALS, TASK)} == {None}
    print_leaderboard(rows, TASK)
    heading, best, *_ = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["trial", "state", "front"]
    assert best.split()[:3] == ["00000", "COMPLETE", "*"]
    print_leaderboard(leaderboard(TRIALS, TASK), TASK)
    assert "front" not in capsys.readouterr().out
