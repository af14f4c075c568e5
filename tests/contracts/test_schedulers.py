"""What every scheduler keeps to, whatever it stops; see `schedulers/_base.py`."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reports import METRIC, report, together

from loraxs_search.errors import UsageError
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialReport
from loraxs_search.schedulers import SCHEDULERS, make_scheduler
from loraxs_search.schedulers._base import Scheduler, ScoredTrial

NAMES = SCHEDULERS.names()
EVERY, STEPS, TRIALS = 4, 32, 8
SCORES = st.one_of(st.floats(0, 1), st.just(math.nan))
# Rounds of trials that are scored together, as a pack scores them: a score, or None for each that takes no part.
ROUNDS = st.lists(st.lists(st.none() | SCORES, min_size=TRIALS, max_size=TRIALS), max_size=12)
every_scheduler = pytest.mark.parametrize("name", NAMES)


def new(name: str) -> Scheduler:
    return make_scheduler(SearchPlan(scheduler=name, max_steps=STEPS, report_every=EVERY), "maximize")


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
def test_restarts_change_no_decision(name, rounds, restarts):
    """Whichever trials report what, and wherever the driver dies between two reports."""
    undisturbed, resumed, before = new(name), new(name), list[TrialReport]()
    for number, latest in enumerate(reported(undisturbed, rounds)):
        if number in restarts:
            resumed = new(name)
            resumed.replay(before, METRIC)
        before.append(latest)
        assert resumed.report(latest, METRIC) == undisturbed.report(latest, METRIC)
        assert resumed.stopped == undisturbed.stopped


@every_scheduler
@given(rounds=ROUNDS)
def test_a_spared_trial_is_never_stopped(name, rounds):
    scheduler = new(name)
    scheduler.spares = lambda trial_id: trial_id == "00000"
    for latest in reported(scheduler, rounds):
        scheduler.report(latest, METRIC)
        assert "00000" not in scheduler.stopped


@every_scheduler
@given(rounds=ROUNDS)
def test_every_stop_has_a_reason_and_comes_before_the_last_step(name, rounds):
    scheduler = new(name)
    for latest in reported(scheduler, rounds):
        reason = scheduler.report(latest, METRIC)
        assert reason is None or (len(reason) > 10 and latest.step < STEPS)
        assert scheduler.stopped.get(latest.trial_id) == reason


@every_scheduler
@given(rounds=ROUNDS)
def test_a_report_that_comes_twice_counts_once(name, rounds):
    """As one does whose trial's last report stopped it: Tune says so, and then that the trial has ended."""
    once, twice = new(name), new(name)
    for latest in reported(once, rounds):
        answer = once.report(latest, METRIC)
        assert [twice.report(latest, METRIC), twice.report(latest, METRIC)] == [answer, answer]


@every_scheduler
def test_a_score_that_is_not_a_number_ends_no_search(name):
    scheduler = new(name)
    for latest in together({"00000": math.nan, "00001": 0.5, "00002": math.nan}, EVERY):
        assert scheduler.report(latest, METRIC) in (None, scheduler.stopped.get(latest.trial_id))


@every_scheduler
def test_a_peer_that_is_never_heard_of_again_does_no_harm(name):
    scheduler = new(name)
    scheduler.report(report("00000", EVERY, 0.5, {"00001": (EVERY, 0.9)}), METRIC)
    scheduler.report(report("00000", 2 * EVERY, 0.5, {"00002": (STEPS, 0.9)}), METRIC)
    assert "00001" not in scheduler.stopped
    assert "00002" not in scheduler.stopped


@every_scheduler
def test_it_can_be_pickled(name):
    """Ray Tune pickles what it runs."""
    scheduler = new(name)
    scheduler.replay(together({"00000": 0.5, "00001": 0.8, "00002": 0.1}, EVERY), METRIC)
    assert pickle.loads(pickle.dumps(scheduler)).stopped == scheduler.stopped


# ---- names -----------------------------------------------------------------------------------------------------------
class Nobody(Scheduler):
    name: ClassVar = "nobody"

    def decide(self, trial: ScoredTrial) -> None: ...


def test_an_unknown_scheduler_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"`search\.scheduler`.*: asha, none, .*'ashaa'"):
        new("ashaa")


def test_a_name_that_is_taken_cannot_be_registered():
    with pytest.raises(ValueError, match="'asha' is taken"):
        SCHEDULERS.register("asha", Nobody)
    SCHEDULERS.register("asha", SCHEDULERS.get("asha"))  # the same one, as when a notebook's cell runs twice
