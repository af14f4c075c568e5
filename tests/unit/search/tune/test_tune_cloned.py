"""Trials that are asked for as clones of others, cold or with their state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from support.asked_driver import drive, report, send, snapshot

from loraxs_search.records import (
    AnswerState,
    Lineage,
    TrialState,
)
from loraxs_search.studies import StudyFolder, read_reports

pytestmark = pytest.mark.usefixtures("plain_specs")


def test_a_cold_clone_has_its_sources_params_but_for_those_given(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    driver.end("00000")
    send(folder, "clone", "0", params={"learning_rate": 0.02})
    assert driver.begin() == "00001"
    records = folder.journal().records
    assert records["00001"].params == {**records["00000"].params, "learning_rate": 0.02}
    assert (records["00001"].lineage, records["00001"].is_hidden) == (Lineage("s", "00000"), False)


def test_a_warm_clone_goes_on_with_the_state_that_its_source_had(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    folder.write_snapshot("00000", snapshot("00000", 20))
    command = send(folder, "clone", "00000", params={"learning_rate": 0.02}, warm=True)
    driver.commander.take_all()
    folder.write_snapshot("00000", snapshot("00000", 30))  # its source trains on before it starts
    assert driver.begin() == "00001"
    record = folder.journal().records["00001"]
    assert (record.command, record.lineage, record.is_hidden) == (command, Lineage("s", "00000", 20), True)
    first = report("00001", 20, 0.6)
    assert record.reports == (replace(first, device_s=0.0, peers={}),)
    kept = folder.read_snapshot("00001") or b""
    assert read_reports(kept) == record.reports
    assert load(kept).keys() == load(snapshot("x", 1)).keys()
    assert (load(kept)["parameter/R"] == np.arange(4.0)).all()
    in_optuna = driver.optuna_study.get_trials()[1]
    assert (in_optuna.params, in_optuna.intermediate_values) == ({}, {})
    driver.end("00001", score=0.9)
    ended = driver.optuna_study.get_trials()[1]
    assert (ended.state.name, ended.user_attrs["state"]) == ("FAIL", "COMPLETE"), "samplers pass over what has failed"
    assert folder.journal().records["00001"].state is TrialState.COMPLETE


def test_a_clone_of_a_clone_has_the_seed_of_the_first(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    folder.write_snapshot("00000", snapshot("00000", 20))
    send(folder, "clone", "00000", warm=True)
    driver.begin()
    folder.write_snapshot("00001", snapshot("00001", 30))
    driver.end("00000")
    send(folder, "clone", "00001", warm=True)
    seeds = []
    actors = driver.searcher._actors
    given = actors.spec
    actors.spec = lambda *arguments: seeds.append(arguments[2]) or given(*arguments)  # type: ignore[method-assign,func-returns-value]
    assert driver.begin() == "00002"
    assert seeds == ["00000"]
    resumed = drive(folder)
    assert [resumed.begin() for _ in range(2)] == ["00001", "00002"]


@pytest.mark.parametrize(
    ("step", "arguments", "params", "law"),
    [
        (0, {"warm": True}, {}, "needs a trial that has reported, but trial 00000 of study 's' has no state yet"),
        (40, {"warm": True}, {}, "needs a trial with steps left, but trial 00000 of study 's' has trained all 40"),
        (20, {"warm": True}, {"rank": "other"}, "`rank` must stay"),
        (20, {"warm": True, "force": True}, {"rank": "other"}, "`rank` must stay"),
        (20, {}, {"learning_rate": 1.0}, "`learning_rate` must be as the space has it: learning_rate is 1.0, and here"),
        (20, {"force": True}, {"rank": 5}, "`rank` must be as the space has it: rank is 5, and here one of 4, 8, 16"),
        (20, {}, {"rnak": 8}, "`rnak` must be a parameter of a trial: rank"),
        (20, {}, {"learning_rate": "fast"}, "`learning_rate` must be a number above 0, but got"),
    ],
)
def test_a_clone_that_cannot_be_is_refused_with_the_law(
    folder: StudyFolder, step: int, arguments: dict[str, bool], params: dict[str, Any], law: str
) -> None:
    driver = drive(folder)
    driver.begin()
    if step:
        folder.write_snapshot("00000", snapshot("00000", step))
    own = folder.journal().records["00000"].params["rank"]
    given = {name: (4 if own != 4 else 8) if value == "other" else value for name, value in params.items()}
    command = send(folder, "clone", "00000", params=given, **arguments)
    driver.commander.take_all()
    answer = folder.journal().commands[command].answer
    assert answer is not None
    assert answer.state is AnswerState.REFUSED
    assert law in answer.text


def test_force_takes_an_optimizer_out_of_the_space_and_the_sampler_does_not_see_it(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    driver.end("00000")
    send(folder, "clone", "00000", params={"learning_rate": 1.0, "weight_decay": 0.1}, force=True)
    assert driver.begin() == "00001"
    record = folder.journal().records["00001"]
    assert (record.params["learning_rate"], record.params["weight_decay"], record.is_hidden) == (1.0, 0.1, True)
    assert driver.optuna_study.get_trials()[1].params == {}


def test_a_damaged_state_costs_the_clone_and_nothing_else(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    (folder.path / "snapshots" / "00000.safetensors").write_bytes(b"not a snapshot")
    refused = send(folder, "clone", "00000", warm=True)
    driver.commander.take_all()
    answer = folder.journal().commands[refused].answer
    assert answer is not None
    assert "must be a snapshot" in answer.text
    folder.write_snapshot("00000", snapshot("00000", 20))
    command = send(folder, "clone", "00000", warm=True)
    driver.commander.take_all()
    (folder.path / "clones" / f"{command}.safetensors").unlink()
    assert driver.begin() is None
    record = folder.journal().records["00001"]
    assert record.state is TrialState.FAIL
    assert "A clone must have the state that it begins with" in record.reason
    assert driver.begin() == "00002"
