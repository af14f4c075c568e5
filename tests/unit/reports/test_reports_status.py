"""How a search stands: the leaderboard, from records alone; what views say, from events alone; `status` and `watch`.

Who follows a study from its folder learns what its launch says, in the same words, and when it ends.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from support.studies import FACTS, ScriptedDriver, Tried, begun, ended, finishing, reported, searched, study, training
from support.toy_language import writing
from support.toys import measured

import loraxs_search
from loraxs_search.cli._out import print_leaderboard
from loraxs_search.errors import StudyError
from loraxs_search.log.events import Phase, RowsScored, SearchEnded, ShownEvent, TrialReported, TrialsAdvanced
from loraxs_search.records.codec import to_json
from loraxs_search.records.search import Baseline, Candidate, SearchPlan
from loraxs_search.records.task import DataSource, Task
from loraxs_search.records.trial import AdapterSize, TrialRecord, TrialReport, TrialState
from loraxs_search.reports.leaderboard import leaderboard, leaderboard_table, score_warnings
from loraxs_search.reports.search_state import SearchState
from loraxs_search.reports.study_status import Progress, watch

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


def state_after(events: Iterable[ShownEvent]) -> SearchState:
    state = SearchState()
    for event in events:
        state.happened(event)
    return state


@pytest.fixture
def state():
    """A search at 1080 s: trial 0 is complete, trial 1 was stopped after 20 steps, two are at step 40."""
    return state_after(training())


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
    state = state_after(replace(it, direction=direction) if it is FACTS else it for it in training())
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
    limited = state_after(replace(it, time_left_s=90.0) if it is FACTS else it for it in training())
    assert limited.seconds_left(1080.0) == pytest.approx(10), "the time budget"


def test_before_the_first_report_no_time_is_named():
    state = SearchState()
    assert (state.share_done(), state.seconds_left(0.0), state.best) == (0.0, None, None)
    state.happened(FACTS)
    assert state.trial_steps == 4 * 80, "none has been stopped: it is the most that there can be"
    assert (state.share_done(), state.seconds_left(1010.0)) == (0.0, None)


def test_a_search_that_goes_on_counts_what_was_trained_before_but_not_as_its_pace():
    """A journal has an earlier driver's trials before the second `search_started`, and a launch after it."""
    before = [begun(0, 10.0), reported(0, 80, 0.5, 20.0), ended(0, TrialState.COMPLETE, 20.0)]
    before += [begun(1, 10.0), reported(1, 40, 0.4, 20.0)]
    state, read = state_after([FACTS, *before]), state_after([*before, FACTS])
    assert (state.trials, state.best) == (read.trials, read.best)
    assert state.best is not None
    assert (state.steps_done, state.seconds_left(1000.0)) == (120, None)
    state.happened(reported(1, 60, 0.45, 1010.0))
    assert state.seconds_left(1010.0) == pytest.approx((20 + 2 * 80 + 160) / 2.0)


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


def test_the_share_of_trials_that_went_on_is_expected_to_go_on():
    def steps(trials: list[tuple[int, TrialState]], num_trials: int, max_steps: int, report_every: int) -> float:
        events = [replace(FACTS, num_trials=num_trials, max_steps=max_steps, report_every=report_every)]
        for number, (step, how) in enumerate(trials):
            events += [begun(number, 1000.0), reported(number, step, 0.5, 1001.0)]
            events += [ended(number, how, 1002.0)] if how is not TrialState.RUNNING else []
        return state_after(events).trial_steps

    assert steps([], 10, 100, 40) == 1000
    # To step 20 all, beyond it 3 of 4, beyond step 40 one of two (the one that runs there has passed it), then all.
    known = [(20, TrialState.PRUNED), (80, TrialState.COMPLETE), (40, TrialState.PRUNED), (40, TrialState.RUNNING)]
    assert steps(known, 6, 80, 20) == pytest.approx(220 + 2 * (20 + 15 + 15))
    assert steps([(20, TrialState.FAIL)], 2, 80, 20) == 20 + 80, "it says nothing of the others"
    assert steps([(40, TrialState.RUNNING)], 1, 50, 20) == 50, "the last report comes at the last step"


TRIED = (Tried({"rank": 4, "learning_rate": 1e-3}, 0.7), Tried({"rank": 8, "learning_rate": 1e-3}, 0.9))


def test_it_is_what_the_command_line_prints(say):
    assert loraxs_search.status() == []
    searched("s", TRIED)
    (summary,) = loraxs_search.status()
    assert (summary.study, summary.trials) == ("s", "2/2")
    for unknown in (loraxs_search.status, lambda name: next(loraxs_search.watch(name))):
        with pytest.raises(StudyError, match="'t'"):
            unknown("t")
    status = loraxs_search.status("s")
    assert json.loads(say("status", "s", "--json").ok) == json.loads(to_json(status))
    assert [row.trial_id for row in status.trials] == ["00001", "00000"]
    assert (status.progress.ended, status.commands, status.place) == (2, [], "")


def test_a_running_search_stands_as_live_views_draw_it(say):
    driver = ScriptedDriver(study("s"))
    driver.begin()
    driver.train("00000", 20)
    driver.train("00001", 40)
    driver.folder.steps.write(TrialsAdvanced(study="s", steps={"00000": 33, "00001": 47}))
    with driver.folder.lock():
        rows = {row.trial_id: (row.state, row.step) for row in loraxs_search.status("s").trials}
        assert rows == {"00000": ("RUNNING", 33), "00001": ("RUNNING", 47)}
        driver.end("00000", TrialState.PRUNED)
        driver.journal.phase("training the best trial again")
        driver.journal.phase(done=20, total=40, unit="steps")
        assert "now: training the best trial again: 20 of 40 steps" in say("status", "s").err


def untimed(events: list[ShownEvent]) -> list[ShownEvent]:
    """A phase is told to the view and to the journal one after the other, a moment apart."""
    return [replace(event, at=0.0) if isinstance(event, Phase) else event for event in events]


def kinds(events: list[ShownEvent]) -> list[str]:
    return [type(event).__name__ for event in events]


def followed(*acts: Callable[[], object]) -> list[list[ShownEvent]]:
    """Return what `watch` yields of a study before and after each of these, which happen while it waits."""
    looks, left = [list[ShownEvent]()], iter(acts)

    def meanwhile(_: float) -> None:
        next(left)()
        looks.append([])

    for event in watch("mine", sleep=meanwhile):
        looks[-1].append(event)
    assert not list(left)
    return looks


def test_a_follower_gets_the_events_that_the_launch_tells():
    driver, held = ScriptedDriver(study("mine")), contextlib.ExitStack()
    held.enter_context(driver.folder.lock())

    def train() -> None:
        driver.train("00000", 40)
        driver.train("00001", 20)

    def finish() -> None:
        driver.end("00001", TrialState.PRUNED)
        driver.end("00000", TrialState.COMPLETE)
        driver.finish()

    looks = followed(driver.begin, train, finish, held.close)
    assert list(map(kinds, looks[:2])) == [[], ["SearchStarted"]]
    *seen, last = (event for look in looks for event in look)
    told = [event for event in driver.seen if getattr(event, "text", "") != "writing the last records to MLflow"]
    assert untimed(seen) == untimed(told)
    assert untimed(list(watch("mine", sleep=pytest.fail))) == untimed([*told, last])
    assert isinstance(last, SearchEnded)
    assert last.state == "finished"


def test_a_follower_learns_how_far_trials_are_between_reports_and_that_a_killed_driver_goes_no_further():
    driver, held = ScriptedDriver(study("mine")), contextlib.ExitStack()
    stale = TrialsAdvanced(study="mine", at=1.0, steps={"00000": 99})
    driver.folder.steps.write(stale)  # by an earlier driver
    held.enter_context(driver.folder.lock())
    driver.begin()
    driver.train("00000", 40)
    now = replace(stale, at=time.time() + 1, steps={"00000": 47})
    first, second, third, *killed = followed(
        lambda: driver.folder.steps.write(now), lambda: None, held.close, lambda: None
    )
    assert kinds(first) == ["SearchStarted", "TrialStarted", "TrialReported", "TrialReported"]
    assert (second, third, killed[0]) == ([now], [], [])
    (last,) = killed[1]
    assert isinstance(last, SearchEnded)
    assert last.state == "interrupted"


def test_a_study_that_goes_on_while_it_is_watched_has_not_ended():
    driver, held = ScriptedDriver(study("mine")), contextlib.ExitStack()

    def begin() -> None:  # nobody has held it before
        held.enter_context(driver.folder.lock())
        driver.begin()

    again = functools.partial(held.enter_context, driver.folder.lock())
    looks = followed(begin, held.close, again, held.close, lambda: None)
    assert list(map(kinds, looks)) == [[], ["SearchStarted"], [], [], [], ["SearchEnded"]]
