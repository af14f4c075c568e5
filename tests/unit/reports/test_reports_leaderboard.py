"""The leaderboard and the counts, from records alone; and what its scores show to be wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from support.reports import measured
from support.toy_language import writing

from loraxs_search.cli._out import print_leaderboard
from loraxs_search.records.search import Baseline, Candidate, SearchPlan
from loraxs_search.records.task import DataSource, Task
from loraxs_search.records.trial import AdapterSize, TrialRecord, TrialReport, TrialState
from loraxs_search.reports.leaderboard import leaderboard, leaderboard_table, score_warnings
from loraxs_search.reports.study_status import Progress

TASK = Task("t", "regression", DataSource(), "text", "label", "pearson", "maximize", ("pearson", "mse"))
BY_MSE = replace(TASK, report_metric="mse", report_direction="minimize")


def trial(trial_id: str, state: TrialState, *scores: float, worked_s: float | None = 7.0) -> TrialRecord:
    size = AdapterSize(16, 4, 80)
    reports = tuple(
        TrialReport(trial_id, step, {"pearson": score, "mse": 1 - score}, 1.0, float(step), 10, size)
        for step, score in enumerate(scores, start=1)
    )
    return TrialRecord(trial_id, {"rank": 4}, state, "why", reports, worked_s=worked_s)


TRIALS = [
    trial("00000", TrialState.PRUNED, 0.9, worked_s=3.0),
    trial("00001", TrialState.COMPLETE, 0.2, 0.4),
    trial("00002", TrialState.FAIL),
    trial("00003", TrialState.COMPLETE, 0.7, 0.6),
    trial("00004", TrialState.RUNNING, 0.3, worked_s=None),
    trial("00005", TrialState.COMPLETE, 0.4),
]


def candidate(trial_id: str, validation=None, **test: float) -> Candidate:
    return Candidate("s", trial_id, "t", test, validation or {}, 80, "data", "base")


def test_complete_trials_come_first_best_first_and_ties_by_id_and_a_row_has_the_last_report():
    rows = leaderboard(TRIALS, TASK, [candidate("00003", pearson=0.55)])
    assert [row.trial_id for row in rows] == ["00003", "00001", "00005", "00004", "00000", "00002"]
    assert (rows[0].step, rows[0].score, rows[0].test_score, rows[0].r_parameters) == (2, 0.6, 0.55, 16)
    assert (rows[0].stored_bytes, rows[0].reason, rows[0].params, rows[0].finalist) == (80, "why", {"rank": 4}, "00003")
    times = {row.trial_id: (row.device_s, row.wall_s) for row in rows}
    assert (times["00003"], times["00000"], times["00004"]) == ((2.0, 7.0), (1.0, 3.0), (1.0, None))
    bare = rows[-1]
    assert (bare.step, bare.score, bare.test_score, bare.r_parameters, bare.stored_bytes) == (0, None, None, None, None)
    # A refit that is the finalist stands in the row of its trial.
    rows = leaderboard(TRIALS, TASK, [candidate("00003.2", pearson=0.55), candidate("00001")])
    assert [(row.test_score, row.finalist) for row in rows[:2]] == [(0.55, "00003.2"), (None, "")]


def test_trials_are_compared_by_their_reports_and_candidates_by_the_tasks_metric():
    rows = leaderboard(TRIALS, BY_MSE, [candidate("00001", {"pearson": 0.6}, pearson=0.5)])
    assert [row.trial_id for row in rows[:3]] == ["00003", "00001", "00005"], "less is better"
    assert (rows[0].score, rows[0].candidate_score, rows[0].test_score) == (pytest.approx(0.4), None, None)
    assert (rows[1].candidate_score, rows[1].test_score, rows[1].kept_step) == (0.6, 0.5, None)


def test_a_complete_trial_stands_for_the_step_that_is_kept():
    rows = {row.trial_id: row for row in leaderboard(TRIALS, TASK, checkpoint="best")}
    assert (rows["00003"].score, rows["00003"].step, rows["00003"].kept_step) == (0.7, 2, 1)
    assert (rows["00001"].score, rows["00001"].kept_step) == (0.4, 2)
    assert all(rows[name].kept_step is None for name in ("00000", "00002", "00004"))  # these have no adapter


def test_progress_counts_every_state():
    counts = Progress.of(TRIALS, SearchPlan(trials=10))
    assert (counts.num_trials, counts.running, counts.complete, counts.pruned, counts.failed) == (10, 1, 3, 1, 1)
    assert counts.ended == 5
    assert Progress.of(TRIALS, SearchPlan(trials=2)).num_trials == 6


# ---- as a table ------------------------------------------------------------------------------------------------------
def test_columns_that_only_some_studies_have_are_shown_where_they_have_values(capsys):
    def printed(task, rows, baselines=()):
        print_leaderboard(rows, task, baselines)
        return [[cell.strip() for cell in line.split("  ") if cell] for line in capsys.readouterr().out.splitlines()]

    plain = ["trial", "state", "step", "pearson", "test pearson", "R", "bytes", "device s", "wall s"]
    assert printed(TASK, leaderboard(TRIALS, TASK))[0] == plain
    assert printed(TASK, leaderboard(TRIALS, TASK, checkpoint="best"))[0] == [*plain[:3], "kept", *plain[3:]]
    scored = candidate("00001", {"pearson": 0.6, "unparsed": 0.25, "unended": 0.0}, pearson=0.5)
    alone = Baseline("4-shot", {"pearson": 0.3, "mse": 0.9, "unparsed": 0.5}, {"pearson": 0.2}, seconds=3.0)
    heading, *_, below = printed(BY_MSE, leaderboard(TRIALS, BY_MSE, [scored]), [alone])
    assert heading == [*plain[:3], "mse", "validation pearson", "test pearson", "unparsed", "unended", *plain[5:]]
    assert below == ["4-shot", "BASELINE", "-", "0.9000", "0.3000", "0.2000", "0.5000", "-", "-", "-", "3.0", "-"]
    size = AdapterSize(16, 4, 80, without_projection=48)
    projected = trial("00007", TrialState.COMPLETE, 0.5)
    projected = replace(projected, reports=(replace(projected.reports[0], size=size),))
    heading, *lines = printed(TASK, leaderboard([*TRIALS, projected], TASK))
    assert heading[6:8] == ["bytes", "learnt bytes"]
    sizes = {line[0]: line[6:8] for line in lines}
    assert (sizes["00007"], sizes["00001"]) == (["80", "48"], ["80", "-"])


def test_a_page_has_the_reasons_of_trials_that_are_not_complete_and_no_mark_for_nothing():
    table = leaderboard_table(leaderboard(TRIALS, TASK), TASK, is_page=True)
    assert table.columns[-1] == "reason"
    assert [cells[-1] for cells in table.cells] == ["", "", "", "why", "why", "why"]
    assert {cell for cells in table.cells for cell in cells} & {"-", "None"} == set()


# ---- what scores show to be wrong with how answers are asked ---------------------------------------------------------
WRITING = replace(writing(), report_metric="loss", report_direction="minimize")
CUT = {"exact_match": 0.5, "unparsed": 0.0, "unended": 0.375}


def scored(trial_id: str, **metrics: float) -> TrialRecord:
    return TrialRecord(trial_id, {}, TrialState.COMPLETE, "", (measured(trial_id, 8, metrics),), 1.0, 2.0)


LOSSES = [scored("00000", loss=0.1), scored("00001", loss=0.2)]


def test_share_and_remedy_are_named_of_the_best_candidate():
    def warned(task, *candidates):
        return score_warnings(leaderboard(LOSSES, WRITING, candidates), task)

    worse = candidate("00000", {**CUT, "exact_match": 0.4, "unended": 0.0})
    (cut,) = warned(WRITING, candidate("00001", CUT), worse)
    assert cut.startswith("trial 00001: 38% of the answers were cut at max_new_tokens=6")
    for name, share in itertools.product(("unended", "unparsed"), (0.099, 0.1)):
        few = candidate("00000", {**CUT, "unended": 0.0, name: share})
        assert bool(warned(WRITING, few)) is (share == 0.1)
    half = candidate("00000", {"exact_match": 0.1, "unparsed": 0.5, "unended": 0.0})
    for task, why in ((WRITING, "50% of the answers are empty"), (writing(extract={"as": "number"}), "`extract`")):
        (warning,) = warned(task, half)
        assert why in warning
    assert warned(WRITING) == score_warnings([], WRITING) == [], "no answers were written"


def test_before_there_are_candidates_the_best_trials_report_says_it():
    bad, good = scored("00000", exact_match=0.1, unended=0.0), scored("00001", exact_match=0.5, unended=0.2)
    (warning,) = score_warnings(leaderboard([bad, good], writing()), writing())
    assert warning.startswith("trial 00001: 20% of the answers were cut at max_new_tokens=6")
