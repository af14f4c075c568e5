"""A time budget keeps time for the end of a search, which takes as long as trials say."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.searched_studies import Tried, searched
from support.studies import TASK

from loraxs_search.records.base import BaseModel
from loraxs_search.records.host import HostInfo
from loraxs_search.records.promotion import PromotionRule
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import DataReport
from loraxs_search.records.trial import TrialState
from loraxs_search.search.tune.time_budget import EndTime, TimeBudget
from loraxs_search.steering import steered

ROWS = {"train": 1000, "validation": 500, "test": 1000}
INFO = HostInfo(
    BaseModel("b", "", "0" * 64), (), 0, "d", ROWS, "cpu", "float32", {}, data=DataReport({**ROWS, "validation": 2000})
)


def test_the_end_of_a_task_that_writes_is_counted_in_answers():
    """1,000 test rows by the finalist and the base, 200 others twice by the base, 2,000 by each candidate."""
    settings = {"prompt": "{q}", "answer": "{a}"}
    task = replace(TASK, kind="text-generation", report_metric="loss", settings=settings)
    end = EndTime.of(task, INFO, trial_s=30.0, scoring_s=1.0, answer_s=0.1, num_devices=2)
    assert end == EndTime(15.0, 100.0, (1000 + 1000 + 2 * 200) * 0.05)


def test_what_does_not_fit_is_left_out_the_refits_first():
    end = EndTime(refit_s=20.0, candidate_s=5.0, fixed_s=10.0)
    assert [end.fitting(left_s, 3, 6) for left_s in (0.0, 21.0, 26.0, 76.0, 1000.0)] == [
        (1, 0),
        (2, 0),
        (3, 0),
        (3, 2),
        (3, 6),
    ]
    assert end.total_s(3, 2) == 10 + 5 * 5 + 2 * 20


@pytest.mark.parametrize(
    ("budget_s", "now", "is_over", "is_late"),
    [(300, 206, False, False), (300, 207, True, False), (300, 217, True, True), (100, 44, False, False)],
)
def test_a_time_budget_keeps_time_for_refits(monkeypatch, fresh_home, budget_s, now, is_over, is_late):
    """Four refits of 20 s take 80 s, with a margin 88 s, but at most half; the trial that runs reports after 10 s."""
    tried = [Tried({"rank": 4}, 0.9), Tried({"rank": 8}, 0.8, state=TrialState.RUNNING)]
    folder = searched("s", tried, plan=SearchPlan(time_budget=budget_s), promotion=PromotionRule(), finished=False)
    journal = folder.journal()
    for name, record in journal.records.items():
        slow = tuple(replace(each, device_s=float(each.step), scoring_s=0.0) for each in record.reports)
        journal.records[name] = replace(record, reports=slow)
    monkeypatch.setattr("loraxs_search.search.tune.time_budget.steady_time", lambda: now)
    info = SimpleNamespace(num_rows={"validation": 10, "test": 10}, data=DataReport({}))
    slots = SimpleNamespace(slots=SimpleNamespace(num_slots=2))
    actors: Any = SimpleNamespace(info=info, slot_counter=slots, pack_size=SimpleNamespace(size=2))
    budget = TimeBudget(steered(folder, journal), actors, 0.0)
    budget.keep_time_for_end()
    assert (budget.is_over, budget.is_late) == (is_over, is_late)
