"""What a study's scores show to be wrong with how answers are asked."""

from __future__ import annotations

import itertools
from dataclasses import replace

from support.reports import measured
from support.toy_language import writing

from loraxs_search.records.promotion import Candidate
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.reports.leaderboard import leaderboard, score_warnings

TASK = replace(writing(), report_metric="loss", report_direction="minimize")
CUT = {"exact_match": 0.5, "unparsed": 0.0, "unended": 0.375}


def trial(trial_id: str, **metrics: float) -> TrialRecord:
    return TrialRecord(trial_id, {}, TrialState.COMPLETE, "", (measured(trial_id, 8, metrics),), 1.0, 2.0)


def candidate(trial_id: str, metrics: dict[str, float]) -> Candidate:
    return Candidate("s", trial_id, "t", {}, metrics, 80, "data", "base")


TRIALS = [trial("00000", loss=0.1), trial("00001", loss=0.2)]


def test_share_and_remedy_are_named_of_the_best_candidate():
    scored = [candidate("00001", CUT), candidate("00000", {**CUT, "exact_match": 0.4, "unended": 0.0})]
    assert score_warnings(leaderboard(TRIALS, TASK, scored), TASK) == [
        "trial 00001: 38% of the answers were cut at max_new_tokens=6: raise `generation.max_new_tokens`, or end"
        " answers by a text in `generation.stop`"
    ]


def test_a_few_are_no_reason_to_warn():
    for name, share in itertools.product(("unended", "unparsed"), (0.099, 0.1)):
        scored = candidate("00000", {**CUT, "unended": 0.0, name: share})
        assert bool(score_warnings(leaderboard(TRIALS, TASK, [scored]), TASK)) is (share == 0.1)


def test_where_nothing_is_found_the_extraction_is_named_and_without_one_the_prompt():
    rows = leaderboard(TRIALS, TASK, [candidate("00000", {"exact_match": 0.1, "unparsed": 0.5, "unended": 0.0})])
    (empty,) = score_warnings(rows, TASK)
    assert empty.startswith("trial 00000: 50% of the answers are empty, and count as wrong: train longer")
    (unfound,) = score_warnings(rows, writing(extract={"as": "number"}))
    assert unfound.startswith("trial 00000: `extract` found nothing in 50% of the answers, which count as wrong: let")


def test_before_there_are_candidates_the_best_trials_report_says_it():
    bad, good = trial("00000", exact_match=0.1, unended=0.0), trial("00001", exact_match=0.5, unended=0.2)
    (warning,) = score_warnings(leaderboard([bad, good], writing()), writing())
    assert warning.startswith("trial 00001: 20% of the answers were cut at max_new_tokens=6")


def test_where_no_answers_are_written_nothing_is_said():
    assert score_warnings(leaderboard(TRIALS, TASK), TASK) == []
    assert score_warnings([], TASK) == []
