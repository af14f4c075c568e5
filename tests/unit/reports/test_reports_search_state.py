"""What views say of a search: how far it is, what is left, who leads; from its events alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.searched_studies import FACTS, begun, ended, finishing, reported, training

from loraxs_search.log.events import (
    Phase,
    RowsScored,
    SearchEnded,
    SearchStarted,
    TrialEnded,
    TrialReported,
    TrialsAdvanced,
)
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.search_state import SearchState


@pytest.fixture
def state():
    """A search at 1080 s: trial 0 is complete, trial 1 was stopped after 20 steps, two are at step 40."""
    state = SearchState()
    for event in training():
        state.happened(event)
    return state


def test_steps_since_the_last_report_count_until_the_next_one(state):
    steps = state.steps_done
    advanced = TrialsAdvanced(study="mine", at=1081.0, steps={"00002": 57, "00003": 39, "00001": 99, "unknown": 5})
    state.happened(advanced)
    assert (state.trials["00002"].step, state.rows(1)[0].step) == (40, 57)
    assert state.steps_done == steps + 17, "an older answer, one of a trial that has ended and one of a refit add none"
    last = [event for event in training() if isinstance(event, TrialReported) and event.trial_id == "00002"][-1]
    state.happened(replace(last, report=replace(last.report, step=60), at=1090.0))
    assert state.steps_done == steps + 20
    assert [row.trial_id for row in state.rows(2)] == ["00002", "00003"]
    state.happened(replace(advanced, steps={"00002": 79}))
    state.happened(replace(FACTS, at=1100.0))
    assert state.steps_done == steps + 20, "what a killed driver has heard of is forgotten"


@pytest.mark.parametrize(
    ("direction", "best", "mark", "lead"), [("maximize", 0, "tfidf", 0.18), ("minimize", 3, "constant", 0.0)]
)
def test_the_best_is_held_against_the_best_baseline(direction, best, mark, lead):
    state = SearchState()
    for event in training():
        state.happened(replace(event, direction=direction) if isinstance(event, SearchStarted) else event)
    assert state.best is not None
    assert state.best_baseline is not None
    assert (state.best[0], state.best_baseline[0]) == (f"{best:05d}", mark)
    assert state.sign * (state.best[1] - state.best_baseline[1]) == pytest.approx(lead)
    state.baselines.clear()
    for name, metrics in (("of another metric", {"mse": 1.0}), ("odd", {"pearson": float("nan")})):
        state.happened(RowsScored(study="mine", what="baseline", split="validation", name=name, metrics=metrics))
    assert state.best_baseline is None


def test_steps_and_time_that_are_left_are_estimated_from_those_measured(state):
    """At step 20 three of four went on, and of those that got farther the only one whose fate is known did too."""
    assert state.steps_done == 80 + 20 + 40 + 40
    assert state.trial_steps == 80 + 20 + 80 + 80
    assert state.refit_steps == 2 * 80
    assert state.share_done() == 180 / 420
    # 180 steps in 80 s; 80 steps of trials and 160 of refits are left, and 2 s have passed since the last report.
    assert state.seconds_left(1080.0) == pytest.approx(240 / (180 / 80))
    assert state.seconds_left(1082.0) == pytest.approx(240 / (180 / 80) - 2)
    assert state.seconds_left(9999.0) == pytest.approx(240 / (180 / 8999)), "it is late: the pace up to now counts"
    limited = SearchState()
    for event in training():
        limited.happened(replace(event, time_left_s=90.0) if isinstance(event, SearchStarted) else event)
    assert limited.seconds_left(1080.0) == pytest.approx(10), "the time budget"


def test_before_the_first_report_no_time_is_named():
    state = SearchState()
    assert (state.share_done(), state.seconds_left(0.0), state.best) == (0.0, None, None)
    state.happened(FACTS)
    assert state.trial_steps == 4 * 80, "none has been stopped: it is the most that there can be"
    assert (state.share_done(), state.seconds_left(1010.0)) == (0.0, None)


BEFORE = [begun(0, 10.0), reported(0, 80, 0.5, 20.0), ended(0, TrialState.COMPLETE, 20.0)]
BEFORE += [begun(1, 10.0), reported(1, 40, 0.4, 20.0)]


def test_a_search_that_goes_on_counts_what_was_trained_before_but_not_as_its_pace():
    state = SearchState()
    for event in [FACTS, *BEFORE]:
        state.happened(event)
    assert state.steps_done == 120
    assert state.seconds_left(1000.0) is None
    state.happened(reported(1, 60, 0.45, 1010.0))
    assert state.seconds_left(1010.0) == pytest.approx((20 + 2 * 80 + 160) / 2.0)


def test_the_same_events_in_the_order_of_a_journal_say_the_same():
    """A journal has an earlier driver's trials before the second `search_started`, and a launch after it."""
    states = [SearchState(), SearchState()]
    for state, events in zip(states, ([FACTS, *BEFORE], [*BEFORE, FACTS]), strict=True):
        for event in events:
            state.happened(event)
    assert states[0].trials == states[1].trials
    assert states[0].best == states[1].best
    assert states[0].best is not None


def test_refits_are_counted_and_their_time_measured_by_themselves(state):
    for event in finishing():
        state.happened(event)
    assert state.phase is not None
    assert (state.phase.done, state.phase.total) == (80, 160)
    assert state.trial_steps == 180, "no trial is still to come"
    assert state.share_done() == (180 + 80) / (180 + 160)
    assert state.seconds_left(1120.0) == pytest.approx(80 / 4.0)
    state.happened(Phase(study="mine", at=1140.0, text="scoring the candidates"))
    assert state.seconds_left(1140.0) is None
    assert state.refit_steps == 160
    state.happened(SearchEnded(study="mine", at=1150.0, state="finished"))
    assert (state.share_done(), state.seconds_left(1150.0), state.is_training) == (1.0, None, False)


# ---- how many steps are still to come, from how often trials went on so far ----
RUNNING, COMPLETE, PRUNED, FAIL = TrialState


def test_the_share_that_went_on_is_expected_to_go_on():
    def steps(trials: list[tuple[int, TrialState]], num_trials: int, max_steps: int, report_every: int) -> float:
        state = SearchState()
        state.happened(replace(FACTS, num_trials=num_trials, max_steps=max_steps, report_every=report_every))
        for number, (step, how) in enumerate(trials):
            for event in (begun(number, 1000.0), reported(number, step, 0.5, 1001.0), ended(number, how, 1002.0)):
                if not isinstance(event, TrialEnded) or how is not RUNNING:
                    state.happened(event)
        return state.trial_steps

    assert steps([], 10, 100, 40) == 1000
    # To step 20 all, beyond it 3 of 4, beyond step 40 one of two (the one that runs there has passed it), then all.
    known = [(20, PRUNED), (80, COMPLETE), (40, PRUNED), (40, RUNNING)]
    assert steps(known, 6, 80, 20) == pytest.approx(220 + 2 * (20 + 15 + 15))
    assert steps([(20, FAIL)], 2, 80, 20) == 20 + 80, "it says nothing of the others"
    assert steps([(40, RUNNING)], 1, 50, 20) == 50, "the last report comes at the last step"
