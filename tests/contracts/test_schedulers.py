"""What every scheduler keeps to, whatever it stops; see `schedulers/_base.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toys import METRIC, report, together

from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialReport
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.schedulers._base import Scheduler

NAMES = SCHEDULERS.names()
EVERY, STEPS, TRIALS = 4, 32, 8
SCORES = st.one_of(st.floats(0, 1), st.just(math.nan))
# Rounds of trials that are scored together, as a pack scores them: a score, or None for each that takes no part.
ROUNDS = st.lists(st.lists(st.none() | SCORES, min_size=TRIALS, max_size=TRIALS), max_size=12)
every_scheduler = pytest.mark.parametrize("name", NAMES)


def new(name: str) -> Scheduler:
    return SCHEDULERS.get(name)(SearchPlan(max_steps=STEPS, report_every=EVERY), METRIC, "maximize")


def reported(scheduler: Scheduler, rounds: list[list[float | None]]) -> Iterator[TrialReport]:
    """Yield what the trials of a search would report, as long as the scheduler lets them."""
    steps = [0] * TRIALS
    for scores in rounds:
        taking_part = [i for i, score in enumerate(scores) if score is not None and steps[i] < STEPS]
        going_on = [i for i in taking_part if f"{i:05d}" not in scheduler.stopped]
        at = {f"{i:05d}": (steps[i] + EVERY, scores[i] or 0.0) for i in going_on}
        for i in going_on:
            steps[i] += EVERY
            own = f"{i:05d}"
            yield report(own, *at[own], {name: peer for name, peer in at.items() if name != own})


@every_scheduler
@given(rounds=ROUNDS, restarts=st.sets(st.integers(0, 100)))
def test_a_decision_has_a_reason_and_is_the_same_after_restarts_and_when_a_report_comes_twice(name, rounds, restarts):
    """As one does whose trial's last report stopped it: Tune says so, and then that the trial has ended."""
    undisturbed, resumed, before = new(name), new(name), list[TrialReport]()
    for number, latest in enumerate(reported(undisturbed, rounds)):
        if number in restarts:
            resumed = new(name)
            for report_before in before:
                resumed.report(report_before)
        before.append(latest)
        reason = undisturbed.report(latest)
        assert reason is None or (len(reason) > 10 and latest.step < STEPS)
        assert [resumed.report(latest), resumed.report(latest)] == [reason, reason]
        assert undisturbed.stopped.get(latest.trial_id) == reason
        assert resumed.stopped == undisturbed.stopped


def test_each_report_is_decided_on_once(monkeypatch):
    scheduler, asked = new("none"), list[int]()
    monkeypatch.setattr(scheduler, "decide", lambda latest, _: asked.append(latest.step))
    for step in (EVERY, EVERY, 2 * EVERY, EVERY):
        scheduler.report(report("00000", step, 0.5))
    assert asked == [EVERY, 2 * EVERY]


@every_scheduler
@given(rounds=ROUNDS)
def test_a_spared_trial_is_never_stopped(name, rounds):
    scheduler = new(name)
    scheduler.spares = lambda trial_id: trial_id == "00000"
    for latest in reported(scheduler, rounds):
        scheduler.report(latest)
        assert "00000" not in scheduler.stopped


@every_scheduler
def test_a_score_that_is_not_a_number_and_a_peer_that_is_never_heard_of_again_do_no_harm(name):
    scheduler = new(name)
    for latest in together({"00000": math.nan, "00001": 0.5, "00002": math.nan}, EVERY):
        assert scheduler.report(latest) in (None, scheduler.stopped.get(latest.trial_id))
    scheduler = new(name)
    scheduler.report(report("00000", EVERY, 0.5, {"00001": (EVERY, 0.9)}))
    scheduler.report(report("00000", 2 * EVERY, 0.5, {"00002": (STEPS, 0.9)}))
    assert not {"00001", "00002"} & scheduler.stopped.keys()
