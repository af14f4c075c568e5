"""What Optuna hears of the trials in a study's log."""

from __future__ import annotations

from collections.abc import Sequence

from support.studies import TASK

from loraxs_search.log.events import TrialContinued, TrialEnded, TrialReported, TrialStarted
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import AdapterSize, Proposal, TrialReport, TrialState
from loraxs_search.samplers.trials import StudyTrials


def followed(scores: dict[TrialState, Sequence[tuple[int, float]]], plan: SearchPlan) -> StudyTrials:
    """Return the trials of a log in which one has ended in each of these states, with these scores by step."""
    trials = StudyTrials(TASK, plan)
    for number, (state, points) in enumerate(scores.items()):
        name = f"{number:05d}"
        trials.apply(TrialStarted(at=1.0, trial_id=name, params={"rank": 4}, proposal=Proposal({}, {})))
        for step, score in points:
            report = TrialReport(name, step, {"accuracy": score}, 0.5, 1.0, 10, AdapterSize(1, 1, 1))
            trials.apply(TrialReported(at=2.0, report=report))
        trials.apply(TrialEnded(at=3.0, trial_id=name, state=state, reason=f"because {number}", is_cut=True))
    return trials


def test_the_ends_reach_optuna_with_value_and_reason():
    ends = {
        TrialState.COMPLETE: [(4, 0.5), (8, 0.4)],
        TrialState.PRUNED: [(4, 0.6), (8, 0.7)],
        TrialState.FAIL: [(4, 0.8)],
    }
    followed_last = followed(ends, SearchPlan())
    trials = followed_last.trials
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert [t.user_attrs["reason"] for t in trials] == ["because 0", "because 1", "because 2"]
    assert [t.value for t in trials] == [0.4, 0.7, None], "of a pruned trial Optuna takes the last report"
    assert [t.intermediate_values for t in trials] == [{4: 0.5, 8: 0.4}, {4: 0.6, 8: 0.7}, {4: 0.8}]
    assert followed(ends, SearchPlan(checkpoint="best")).trials[0].value == 0.5
    followed_last.apply(TrialContinued(at=4.0, trial_id="00001"))
    assert (trials[1].state.name, trials[1].value) == ("RUNNING", None)


def test_a_score_that_is_no_number_is_none_to_optuna():
    nan = float("nan")
    trials = followed({TrialState.COMPLETE: [(4, nan)], TrialState.PRUNED: [(4, nan)]}, SearchPlan()).trials
    assert [(t.state.name, t.value) for t in trials] == [("FAIL", None), ("PRUNED", None)]
