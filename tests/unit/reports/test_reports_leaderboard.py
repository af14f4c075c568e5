"""The leaderboard and the counts, from records alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loraxs_search.cli._out import print_leaderboard
from loraxs_search.records.promotion import Baseline, Candidate
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import DataSource, Task
from loraxs_search.records.trial import AdapterSize, TrialRecord, TrialReport, TrialState
from loraxs_search.reports.leaderboard import leaderboard, leaderboard_table
from loraxs_search.reports.study_status import Progress

TASK = Task("t", "regression", DataSource(), "text", "label", "pearson", "maximize", ("pearson", "mse"))


def trial(trial_id: str, state: TrialState, *scores: float, ended_at: float | None = 9.0) -> TrialRecord:
    size = AdapterSize(16, 4, 80)
    reports = tuple(
        TrialReport(trial_id, step, {"pearson": score, "mse": 1 - score}, 1.0, float(step), 10, size)
        for step, score in enumerate(scores, start=1)
    )
    worked_s = None if ended_at is None else ended_at - 2.0
    return TrialRecord(trial_id, {"rank": 4}, state, "why", reports, 2.0, ended_at, worked_s=worked_s)


TRIALS = [
    trial("00000", TrialState.PRUNED, 0.9),
    trial("00001", TrialState.COMPLETE, 0.2, 0.4),
    trial("00002", TrialState.FAIL),
    trial("00003", TrialState.COMPLETE, 0.7, 0.6),
    trial("00004", TrialState.RUNNING, 0.3, ended_at=None),
    trial("00005", TrialState.COMPLETE, 0.4),
]


def test_complete_trials_come_first_best_first_and_ties_by_id_and_a_row_has_the_last_report():
    finalist = Candidate("s", "00003", "t", {"pearson": 0.55}, {}, 80, "data", "base")
    rows = leaderboard([replace(TRIALS[0], worked_s=3.0), *TRIALS[1:]], TASK, [finalist])
    assert [row.trial_id for row in rows] == ["00003", "00001", "00005", "00004", "00000", "00002"]
    assert (rows[0].step, rows[0].score, rows[0].test_score, rows[0].r_parameters) == (2, 0.6, 0.55, 16)
    assert (rows[0].stored_bytes, rows[0].reason, rows[0].params, rows[0].finalist) == (80, "why", {"rank": 4}, "00003")
    times = {row.trial_id: (row.device_s, row.wall_s) for row in rows}
    assert (times["00003"], times["00000"], times["00004"]) == ((2.0, 7.0), (1.0, 3.0), (1.0, None))
    bare = rows[-1]
    assert (bare.step, bare.score, bare.test_score, bare.r_parameters, bare.stored_bytes) == (0, None, None, None, None)
    lowest = leaderboard(TRIALS, replace(TASK, metric="mse", direction="minimize"))
    assert [row.trial_id for row in lowest][:3] == ["00003", "00001", "00005"]
    assert lowest[0].score == pytest.approx(0.4)


def test_a_refit_that_is_the_finalist_stands_in_the_row_of_its_trial():
    refit = Candidate("s", "00003.2", "t", {"pearson": 0.55}, {}, 80, "data", "base")
    rows = leaderboard(TRIALS, TASK, [refit, replace(refit, trial_id="00001", test_metrics={})])
    assert [(row.trial_id, row.test_score, row.finalist) for row in rows[:2]] == [
        ("00003", 0.55, "00003.2"),
        ("00001", None, ""),
    ]


def test_progress_counts_every_state():
    counts = Progress.of(TRIALS, SearchPlan(trials=10))
    assert (counts.num_trials, counts.running, counts.complete, counts.pruned, counts.failed) == (10, 1, 3, 1, 1)
    assert counts.ended == 5
    assert Progress.of(TRIALS, SearchPlan(trials=2)).num_trials == 6


def test_trials_are_compared_by_their_reports_and_candidates_by_the_tasks_metric():
    task = replace(TASK, report_metric="mse", report_direction="minimize")
    scored = Candidate("s", "00001", "t", {"pearson": 0.5}, {"pearson": 0.6}, 80, "data", "base")
    rows = leaderboard(TRIALS, task, [scored])
    assert [row.trial_id for row in rows[:3]] == ["00003", "00001", "00005"]
    assert (rows[0].score, rows[0].candidate_score, rows[0].test_score) == (pytest.approx(0.4), None, None)
    assert (rows[1].candidate_score, rows[1].test_score, rows[1].kept_step) == (0.6, 0.5, None)


def test_a_complete_trial_stands_for_the_step_that_is_kept():
    rows = {row.trial_id: row for row in leaderboard(TRIALS, TASK, checkpoint="best")}
    assert (rows["00003"].score, rows["00003"].step, rows["00003"].kept_step) == (0.7, 2, 1)
    assert (rows["00001"].score, rows["00001"].kept_step) == (0.4, 2)
    assert all(rows[name].kept_step is None for name in ("00000", "00002", "00004"))  # these have no adapter


def test_columns_that_only_some_studies_have_are_shown_where_they_have_values(capsys):
    def heading(task, rows, baselines=()):
        print_leaderboard(rows, task, baselines)
        return [name.strip() for name in capsys.readouterr().out.splitlines()[0].split("  ") if name]

    plain = ["trial", "state", "step", "pearson", "test pearson", "R", "bytes", "device s", "wall s"]
    assert heading(TASK, leaderboard(TRIALS, TASK)) == plain
    best = leaderboard(TRIALS, TASK, checkpoint="best")
    assert heading(TASK, best) == [*plain[:3], "kept", *plain[3:]]
    by_mse = replace(TASK, report_metric="mse", report_direction="minimize")
    assert heading(by_mse, leaderboard(TRIALS, by_mse)) == [*plain[:3], "mse", "test pearson", *plain[5:]]
    both = [*plain[:3], "mse", "validation pearson", "test pearson"]
    metrics = {"pearson": 0.6, "unparsed": 0.25, "unended": 0.0}
    scored = Candidate("s", "00001", "t", {"pearson": 0.5}, metrics, 80, "data", "base")
    written = leaderboard(TRIALS, by_mse, [scored])
    assert (written[1].unparsed, written[1].unended) == (0.25, 0.0)
    assert heading(by_mse, written) == [*both, "unparsed", "unended", *plain[5:]]


def test_a_baseline_stands_below_with_both_metrics(capsys):
    task = replace(TASK, report_metric="mse", report_direction="minimize")
    alone = Baseline("4-shot", {"pearson": 0.3, "mse": 0.9, "unparsed": 0.5}, {"pearson": 0.2}, seconds=3.0)
    print_leaderboard(leaderboard(TRIALS, task), task, [alone])
    cells = capsys.readouterr().out.splitlines()[-1].split()
    assert cells == ["4-shot", "BASELINE", "-", "0.9000", "0.3000", "0.2000", "0.5000", "-", "-", "3.0", "-"]


def test_bytes_without_projections_have_a_column_where_files_hold_some(capsys):
    size = AdapterSize(16, 4, 80, without_projection=48)
    [report] = trial("00007", TrialState.COMPLETE, 0.5).reports
    projected = replace(trial("00007", TrialState.COMPLETE), reports=(replace(report, size=size),))
    rows = leaderboard([*TRIALS, projected], TASK)
    print_leaderboard(rows, TASK)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][lines[0].index("bytes") :][:3] == ["bytes", "learnt", "bytes"]
    assert {line[0]: line[6:8] for line in lines[1:]}["00007"] == ["80", "48"]
    assert {line[0]: line[6:8] for line in lines[1:]}["00001"] == ["80", "-"]


def test_a_page_has_the_reasons_of_trials_that_are_not_complete_and_no_mark_for_nothing():
    table = leaderboard_table(leaderboard(TRIALS, TASK), TASK, is_page=True)
    assert table.columns[-1] == "reason"
    assert [cells[-1] for cells in table.cells] == ["", "", "", "why", "why", "why"]
    assert {cell for cells in table.cells for cell in cells} & {"-", "None"} == set()
