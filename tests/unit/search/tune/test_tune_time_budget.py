"""A time budget keeps time for the end of a search, which takes as long as trials say."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.searched_studies import Tried, searched
from support.studies import TASK

from loraxs_search.records.search import PromotionRule, SearchPlan
from loraxs_search.records.task import DataReport, Task
from loraxs_search.records.trial import TrialState
from loraxs_search.search.tune.time_budget import TimeBudget
from loraxs_search.steering import steered


def budget_of(
    monkeypatch, *, budget_s: float, now: float = 0.0, answer_s: float = 0.0, task: Task = TASK
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
    budget.answer_s = answer_s
    budget.keep_time_for_end()
    return budget


@pytest.mark.parametrize(("budget_s", "now", "over"), [(300, 206, 0), (300, 207, 1), (300, 217, 2), (100, 44, 0)])
def test_a_time_budget_keeps_time_for_refits(monkeypatch, fresh_home, budget_s, now, over):
    """Four refits of 20 s take 80 s, with a margin 88 s, but at most half; the trial that runs reports after 10 s."""
    budget = budget_of(monkeypatch, budget_s=budget_s, now=now)
    assert (budget.is_over, budget.is_late) == (over >= 1, over == 2)


def test_what_does_not_fit_is_left_out_the_refits_first(monkeypatch, fresh_home):
    """On two devices a refit takes 10 s, and a candidate of a task that writes 2,000 answers in 100 s.

    120 s are never left out: 1,000 answers of the finalist and of the base, 200 others twice of the base.
    """
    settings = {"prompt": "{q}", "answer": "{a}"}
    writes = replace(TASK, kind="text-generation", report_metric="loss", settings=settings)
    budget = budget_of(monkeypatch, budget_s=10_000.0, answer_s=0.1, task=writes)
    assert budget.end_s == pytest.approx(1.1 * (120 + (2 + 4) * 100 + 4 * 10))
    fits = {}
    for left_s in (0, 321, 421, 641, 9000):
        now = 10_000 - left_s
        monkeypatch.setattr("loraxs_search.search.tune.time_budget.steady_time", lambda now=now: now)
        fits[left_s] = budget.fitting(3, 6)
    assert fits == {0: (1, 0), 321: (2, 0), 421: (3, 0), 641: (3, 2), 9000: (3, 6)}
