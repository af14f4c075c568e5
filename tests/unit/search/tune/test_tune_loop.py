"""When Tune's loop ends before its trials have, and how often a trial's host may be lost; how Tune asks our schedulers.

A node's death is one loss, however often the dead node is offered again. A time budget keeps time for the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RuntimeEnvSetupError
from support.studies import TASK, Tried, searched
from support.toys import METRIC, report

from loraxs_search.errors import ClusterError
from loraxs_search.records.codec import to_json
from loraxs_search.records.search import PromotionRule, SearchPlan
from loraxs_search.records.task import DataReport, Task
from loraxs_search.records.trial import TrialReport, TrialState
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.schedulers._base import Scheduler
from loraxs_search.search.tune import loop, slots
from loraxs_search.search.tune.advancer import FAILED, REPORT, STEP
from loraxs_search.search.tune.loop import GRACE_S, ONE_LOSS_S, WAIT_S, LoopWatch, StudySearcher, _TuneScheduler
from loraxs_search.search.tune.slots import RESOURCES
from loraxs_search.search.tune.time_budget import TimeBudget
from loraxs_search.steering import SteeringState, steered

# As Tune writes it at the end of a trial's file: of a process that died, and of a node that could not make one.
DIED = "Failure # 1 (occurred at 2026-01-01_00-00-00)\nThe actor died unexpectedly.\n"
UNFIT = """
Failure # 2 (occurred at 2026-01-01_00-00-09)
Failed to set up runtime environment.
[Node 10.0.0.7] Traceback (most recent call last):
RuntimeError: Please install virtualenv `python -m pip install virtualenv`to enable pip runtime env.

"""
ASKED = {"CPU": 8.0}
PENDING, RUNNING = (
    SimpleNamespace(status=status, trial_id=f"{status}-in-tune", config={RESOURCES: ASKED})
    for status in ("PENDING", "RUNNING")
)


def budget(time_budget: float | None = None, since: float = 0.0) -> TimeBudget:
    study: Any = SimpleNamespace(plan=SearchPlan(time_budget=time_budget))
    return TimeBudget(study, study, since)


def nobody(*_: object) -> bool:
    raise AssertionError("nobody is asked")


NO_BUDGET = budget()
LARGER: Any = SimpleNamespace(status="PENDING", config={RESOURCES: {"CPU": 16.0}})


def test_losses_that_follow_closely_are_one(monkeypatch):
    closely = [5.0, 6.0, 8.0, 5.0 + ONE_LOSS_S - 1]
    steadily = [6.0 * n for n in range(600)]  # ten losses a minute for an hour are sixty losses, not none
    for losses_at, num_losses in ((closely, 1), (steadily, 60), ([0.0, 100.0, 200.0], 3)):
        trial = SimpleNamespace(trial_id="t", max_failures=3, error_file=None)
        watch = LoopWatch(NO_BUDGET, pytest.fail, nobody)
        for at in losses_at:
            monkeypatch.setattr(loop.time, "monotonic", lambda now=at: now)
            watch.on_trial_recover(0, [], trial)
        assert len(losses_at) - (trial.max_failures - 3) == num_losses


def test_the_time_budget_ends_a_search_whose_trials_all_wait_for_nodes():
    def ends(left_s: float, *trials: Any) -> bool:
        return LoopWatch(budget(60.0, time.time() - 60 + left_s), pytest.fail, nobody).is_late(trials)

    assert not ends(60, PENDING)
    assert not ends(-1, PENDING, RUNNING), "those that run are stopped at their next report"
    assert ends(-1, PENDING)


def test_a_silent_trial_holds_the_search_after_its_time_only_as_long_as_a_report_may_take(monkeypatch):
    """Its host may be stuck: alive, and without an answer."""
    now, deadline = [1000.0], cast("Any", SimpleNamespace(is_over=False))
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def late(*reports_after_s: float) -> Callable[..., list[bool]]:
        deadline.is_over = False
        watch = LoopWatch(deadline, pytest.fail, nobody)
        watch.on_trial_start(0, [], RUNNING)
        for after_s in reports_after_s:
            now[0] += after_s
            watch.on_trial_result(0, [], RUNNING, {})

        def ends(*after_s: float, is_over: bool = True) -> list[bool]:
            deadline.is_over, found = is_over, []
            for each in after_s:
                now[0] += each
                found.append(watch.is_late([RUNNING, PENDING]))
            return found

        return ends

    ends = late(10.0)
    assert ends(10 * GRACE_S, is_over=False) == [False]
    assert ends(0.0, GRACE_S) == [False, False]
    assert ends(GRACE_S, is_over=False) == [False], "it was extended"
    assert ends(0.0, GRACE_S, 1.0) == [False, False, True]
    assert late(GRACE_S, 1.0)(0.0, 2 * GRACE_S, 1.0) == [False, False, True], "reports take long"
    ends = late()
    assert ends(3 * GRACE_S, is_over=False) == [False]
    assert ends(0.0, 3 * GRACE_S, 1.0) == [False, False, True], "nothing is known yet"


def test_trials_that_get_no_slot_are_looked_at_now_and_then(monkeypatch):
    looks, now, holds, stranded = list[Any](), [0.0], [False], [False]

    def ask_anew(asked: Any, others_have_slots: bool) -> bool:
        looks.append((asked, others_have_slots))
        return stranded[0]

    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    watch, ended = LoopWatch(NO_BUDGET, pytest.fail, ask_anew), list[bool]()

    def turn(after_s: float, *trials: Any) -> int:
        now[0] += after_s
        ended.append(watch.is_stranded(trials, holds[0]))
        return len(looks)

    assert [turn(0.0, PENDING), turn(WAIT_S - 1, PENDING), turn(1.0, PENDING), turn(1.0, PENDING)] == [0, 0, 1, 1]
    holds[0] = True
    assert [turn(10 * WAIT_S, RUNNING, PENDING), turn(WAIT_S, RUNNING, PENDING, LARGER)] == [1, 3]
    holds[0] = False
    assert [turn(1.0, PENDING), turn(WAIT_S - 1), turn(1.0, PENDING)] == [3, 3, 3], "there was none in between"
    stranded[0] = True
    turn(WAIT_S, PENDING)
    assert ended == [*[False] * (len(ended) - 1), True]
    assert looks == [(ASKED, False), (ASKED, True), ({"CPU": 16.0}, True), (ASKED, False)]


def test_a_node_that_cannot_make_the_environment_ends_the_search_and_blames_no_trial(tmp_path):
    errors = list[ClusterError]()
    trial = SimpleNamespace(trial_id="t", max_failures=3, error_file=str(tmp_path / "error.txt"))
    watch = LoopWatch(NO_BUDGET, errors.append, nobody)
    watch.on_trial_recover(0, [], trial)
    for failures, num_errors in ((DIED, 0), (DIED + UNFIT, 1), (DIED + UNFIT + DIED, 1)):
        (tmp_path / "error.txt").write_text(failures)
        watch.on_trial_recover(0, [], trial)
        assert len(errors) == num_errors
    assert "10.0.0.7 is not: RuntimeError: Please install virtualenv" in str(errors[0])
    assert "--runtime-env" in (errors[0].hint or "")


PLAN = SearchPlan(max_steps=16, report_every=4)


def searching(scheduler: Scheduler) -> StudySearcher:
    """Return what of a searcher a report needs."""
    searcher = StudySearcher.__new__(StudySearcher)
    searcher._scheduler, searcher._state, searcher._budget = scheduler, SteeringState(), NO_BUDGET
    return searcher


def asked(scheduler: _TuneScheduler, trial_id: str, step: int, score: float) -> str:
    nothing: Any = None
    result = {STEP: step, REPORT: to_json(report(trial_id, step, score))}
    return scheduler.on_trial_result(nothing, nothing, result)


def test_a_trial_is_stopped_under_its_own_name_and_its_end_changes_nothing():
    asha = SCHEDULERS.get("asha")(PLAN, METRIC, "maximize")
    scheduler, nothing = _TuneScheduler(searching(asha)), cast("Any", None)
    assert [asked(scheduler, "00000", 4, 0.8), asked(scheduler, "00001", 4, 0.6)] == ["CONTINUE", "STOP"]
    stopped = dict(asha.stopped)
    scheduler.on_trial_complete(nothing, nothing, {STEP: 4, REPORT: to_json(report("00001", 4, 0.6))})
    assert asha.stopped == stopped
    assert list(stopped) == ["00001"]
    assert scheduler.on_trial_result(nothing, nothing, {STEP: 4, FAILED: "it ended"}) == "CONTINUE"
    searcher = searching(SCHEDULERS.get("none")(PLAN, METRIC, "maximize"))
    assert asked(_TuneScheduler(searcher), "00000", 4, 0.8) == "CONTINUE"
    searcher._budget = budget(60.0, time.time() - 61)
    assert asked(_TuneScheduler(searcher), "00000", 8, 0.8) == "STOP", "the deadline is over"


def test_trials_run_in_their_order_and_those_that_have_ended_are_not_looked_at():
    searcher = searching(SCHEDULERS.get("none")(PLAN, METRIC, "maximize"))
    scheduler = _TuneScheduler(searcher)
    states = {"b": "RUNNING", "d": "PENDING", "a": "PENDING", "c": "PENDING"}
    live: Any = [SimpleNamespace(trial_id=name, status=status) for name, status in states.items()]
    controller: Any = SimpleNamespace(get_live_trials=lambda: live)
    searcher.trial_ids = {own.trial_id: "" for own in live}
    chosen = []
    while (own := scheduler.choose_trial_to_run(controller)) is not None:
        chosen.append(own.trial_id)
        own.status = "RUNNING"
        live.reverse()
    assert chosen == ["d", "a", "c"]


def test_a_scheduler_that_raises_ends_the_search_and_no_trial():
    class Broken(Scheduler):
        name = "broken"

        def decide(self, report: TrialReport, score: float) -> str | None:
            raise KeyError("oh")

    searcher = searching(Broken(PLAN, METRIC, "maximize"))
    assert asked(_TuneScheduler(searcher), "00000", 4, 0.8) == "CONTINUE"
    assert "'broken' failed on a report of trial 00000: KeyError: 'oh'" in str(searcher.fatal_error)


def test_a_process_that_was_not_killed_is_lost_to_tune_all_the_same_and_ends_no_loop(monkeypatch):
    monkeypatch.setattr(RayActorManager, "_actor_task_failed", RayActorManager._actor_task_failed)
    slots.outlive_lost_processes.cache_clear()
    slots.outlive_lost_processes()
    none: Any = SimpleNamespace()  # Ray's own managers of resources connect to a cluster
    manager, lost = RayActorManager(none), list[Exception]()
    monkeypatch.setattr(manager, "_cleanup_actor", lambda tracked_actor: None)
    actor = SimpleNamespace(actor_id="1", _on_error=lambda _, error: lost.append(error))
    task: Any = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    losses = [OutOfMemoryError("low"), RuntimeEnvSetupError("no pip")]
    for loss in losses:
        manager._actor_task_failed(tracked_actor_task=task, exception=loss)  # as Ray itself calls it
    assert [(type(error), str(error)) for error in lost] == [(RayActorError, str(loss)) for loss in losses]


def budget_of(
    monkeypatch, *, budget_s: float, now: float = 0.0, answer_s: float = 0.0, num_answered: int = 0, task: Task = TASK
) -> TimeBudget:
    """Return the budget of a study whose steps take a second; one of its two trials, of 20 steps, still runs."""
    tried = [Tried({"rank": 4}, 0.9), Tried({"rank": 8}, 0.8, state=TrialState.RUNNING)]
    plan = SearchPlan(time_budget=budget_s)
    folder = searched("s", tried, task=task, plan=plan, promotion=PromotionRule(), finished=False)
    journal = folder.journal()
    for name, record in journal.records.items():
        slow = tuple(replace(each, device_s=float(each.step), scoring_s=0.0) for each in record.reports)
        journal.records[name] = replace(record, reports=slow)
    monkeypatch.setattr("loraxs_search.search.tune.time_budget.steady_time", lambda: now)
    data = DataReport({"validation": 2000} if answer_s else {})
    info = SimpleNamespace(num_rows={"validation": 500, "test": 1000}, data=data)
    slots = SimpleNamespace(slots=SimpleNamespace(num_slots=4 if answer_s else 2))
    actors: Any = SimpleNamespace(info=info, slot_counter=slots, pack_size=SimpleNamespace(size=2))
    budget = TimeBudget(steered(folder, journal), actors, 0.0)
    assert budget.fitting(3, 6) is None, "nothing is known yet"
    budget.answer_s, budget.num_answered = answer_s, num_answered
    budget.keep_time_for_end()
    return budget


@pytest.mark.parametrize(("budget_s", "now", "over"), [(300, 206, 0), (300, 207, 1), (300, 217, 2), (100, 44, 0)])
def test_a_time_budget_keeps_time_for_refits(monkeypatch, fresh_home, budget_s, now, over):
    """Four refits of 20 s take 80 s, with a margin 88 s, but at most half; the trial that runs reports after 10 s."""
    budget = budget_of(monkeypatch, budget_s=budget_s, now=now)
    assert (budget.is_over, budget.is_late) == (over >= 1, over == 2)


def test_what_does_not_fit_is_left_out_the_refits_first(monkeypatch, fresh_home):
    """On two devices a refit takes 10 s, and a candidate of a task that writes 2,000 answers in 100 s.

    115 s are never left out: 1,000 answers of the finalist and of the base, 200 others twice of the base, of which 100
    are known.
    """
    settings = {"prompt": "{q}", "answer": "{a}"}
    writes = replace(TASK, kind="text-generation", report_metric="loss", settings=settings)
    budget = budget_of(monkeypatch, budget_s=10_000.0, answer_s=0.1, num_answered=100, task=writes)
    assert budget.end_s == pytest.approx(1.1 * (115 + (2 + 4) * 100 + 4 * 10))
    fits = {}
    for left_s in (0, 316, 416, 636, 9000):
        now = 10_000 - left_s
        monkeypatch.setattr("loraxs_search.search.tune.time_budget.steady_time", lambda now=now: now)
        fits[left_s] = budget.fitting(3, 6)
    assert fits == {0: (1, 0), 316: (2, 0), 416: (3, 0), 636: (3, 2), 9000: (3, 6)}
