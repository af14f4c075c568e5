"""How Ray Tune asks our schedulers."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from support.reports import METRIC, report

from loraxs_search.errors import LoraxsError
from loraxs_search.records import SearchPlan, to_json
from loraxs_search.schedulers import Scheduler, SchedulerConfig, ScoredTrial, make_scheduler
from loraxs_search.search.tune.scheduler import TuneScheduler
from loraxs_search.search.tune.trainable import FAILED, REPORT, SPEC, STEP


def trial(trial_id: str) -> Any:
    """A trial as Tune has it, under an id of its own."""
    return SimpleNamespace(trial_id=f"{trial_id}-in-tune", config={SPEC: json.dumps({"trial_id": trial_id})})


def asked(scheduler: TuneScheduler, trial_id: str, step: int, score: float) -> str:
    controller: Any = None
    result = {STEP: step, REPORT: to_json(report(trial_id, step, score))}
    return scheduler.on_trial_result(controller, trial(trial_id), result)


def test_a_trial_is_stopped_under_its_own_name_and_its_end_changes_nothing() -> None:
    asha = make_scheduler(SearchPlan(max_steps=16, report_every=4), "maximize")
    scheduler = TuneScheduler(asha, METRIC, pytest.fail)
    assert [asked(scheduler, "00000", 4, 0.8), asked(scheduler, "00001", 4, 0.6)] == ["CONTINUE", "STOP"]
    stopped = dict(asha.stopped)
    controller: Any = None
    scheduler.on_trial_complete(controller, trial("00001"), {STEP: 4, REPORT: to_json(report("00001", 4, 0.6))})
    assert asha.stopped == stopped
    assert list(stopped) == ["00001"]


def test_a_failed_trial_is_no_report() -> None:
    asha = make_scheduler(SearchPlan(max_steps=16, report_every=4), "maximize")
    scheduler = TuneScheduler(asha, METRIC, pytest.fail)
    controller: Any = None
    scheduler.on_trial_complete(controller, trial("x"), {STEP: 0, FAILED: "diverged"})
    assert asked(scheduler, "a", 4, 0.1) == "CONTINUE"


def test_a_scheduler_that_raises_ends_the_search_and_no_trial() -> None:
    class Broken(Scheduler):
        name = "broken"

        def decide(self, trial: ScoredTrial) -> str | None:
            raise KeyError("oh")

    errors = list[LoraxsError]()
    scheduler = TuneScheduler(Broken(SchedulerConfig("maximize", 16, 4)), METRIC, errors.append)
    assert asked(scheduler, "00000", 4, 0.8) == "CONTINUE"
    assert "'broken' failed on a report of trial 00000: KeyError: 'oh'" in str(errors[0])
