"""Trials that people ask for: each is proposed once, whatever is killed when, and other proposals stay the same."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from ray.tune.search import Searcher
from support.asked_driver import PLAN, drive, send, write_space
from support.studies import TASK, study

from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.trial import TrialState
from loraxs_search.search.tune.advancer import CANCELLED, STEP

pytestmark = pytest.mark.usefixtures("plain_specs")


# ---- add -------------------------------------------------------------------------------------------------------------
def test_an_added_trial_comes_first_and_on_top_of_the_budget(folder):
    driver = drive(folder)
    assert driver.begin() == "00000"
    driver.end("00000")
    command = send(folder, "add", params={"rank": 16, "learning_rate": 0.05})
    assert driver.run() == ["00001", "00002", "00003"]
    records = folder.journal().records
    added = records["00001"]
    assert (added.command, added.lineage) == (command, "")
    assert (added.params["rank"], added.params["learning_rate"], added.params["batch_size"]) == (16, 0.05, 8)
    assert [record.command for record in records.values()].count("") == PLAN.trials
    in_optuna = driver.trials.trials[1]
    assert in_optuna.params == {name: value for name, value in added.params.items() if name != "batch_size"}
    assert in_optuna.value == pytest.approx(0.51), "the sampler learns from it"


def test_what_is_not_given_is_what_the_sampler_proposes(folder, monkeypatch):
    monkeypatch.setattr(LoraXS, "recipe", lambda *_: {})  # whose trial is not the sampler's
    undisturbed = drive(folder)
    undisturbed.begin()
    proposed = folder.journal().records["00000"].params
    other = study("other", folder.info.tracking_uri, task=TASK, search=PLAN)
    write_space(other)
    rank = next(value for value in (4, 8, 16) if value != proposed["rank"])
    send(other, "add", params={"rank": rank})
    drive(other).begin()
    assert other.journal().records["00000"].params == {**proposed, "rank": rank}


def test_an_added_trial_has_its_sources_params_but_for_those_given(folder):
    driver = drive(folder)
    driver.begin()
    driver.end("00000")
    send(folder, "add", "0", params={"learning_rate": 0.02})
    assert driver.begin() == "00001"
    records = folder.journal().records
    assert records["00001"].params == {**records["00000"].params, "learning_rate": 0.02}
    assert records["00001"].lineage == "00000"


def test_proposals_beside_added_trials_are_those_of_an_undisturbed_search(folder):
    """Whether the driver is killed after each trial or never."""
    undisturbed = study("undisturbed", folder.info.tracking_uri, task=TASK, search=PLAN)
    write_space(undisturbed)
    whole = drive(undisturbed)
    params = []
    for one in (undisturbed, folder):
        driver = whole if one is undisturbed else drive(one)
        for number in range(PLAN.trials + 1):
            if number == 1:
                send(one, "add", params={"rank": 16})
            name = driver.begin()
            assert name is not None
            driver.end(name, score=0.5 + number / 100)
            driver = driver if one is undisturbed else drive(one)
        params.append([record.params for record in one.journal().records.values()])
    assert params[0] == params[1]


# ---- extend ----------------------------------------------------------------------------------------------------------
def test_an_extended_search_proposes_more_and_sees_its_new_deadline(folder):
    driver = drive(folder)
    driver.begin()
    driver.end("00000")
    send(folder, "extend", trials=2, time="1h30m")
    assert len(driver.run()) == 4
    assert driver.searcher._budget.left_s == pytest.approx(5400, abs=60)
    again = drive(folder)
    assert again.begin() == Searcher.FINISHED
    send(folder, "extend", trials=1)
    assert len(again.run()) == 1
    assert len(folder.journal().records) == PLAN.trials + 3


# ---- a time budget that cuts -----------------------------------------------------------------------------------------
def test_trials_that_have_not_reported_by_the_end_of_the_time_budget_end_at_their_next_step(fresh_home, monkeypatch):
    made = study("s", f"sqlite:///{fresh_home}/mlflow.db", task=TASK, search=replace(PLAN, time_budget=60.0))
    write_space(made)
    driver = drive(made)
    driver.begin()
    assert driver.searcher.to_cancel == []
    monkeypatch.setattr("loraxs_search.search.tune.time_budget.steady_time", lambda: time.time() + 60)
    assert driver.searcher.to_cancel == ["00000"]
    driver.searcher.on_trial_complete("tune-0-0", {STEP: 10, CANCELLED: True})
    record = made.journal().records["00000"]
    assert (record.state, record.is_cut) == (TrialState.PRUNED, True)
