"""`status` of studies that run, have ended, wait for somebody, or are another machine's; as CSV and as events."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable

import pytest
from support.searched_studies import ScriptedDriver, Tried, searched
from support.studies import study

from loraxs_search import watch
from loraxs_search.log.events import Answered, Commanded
from loraxs_search.records.search import Command
from loraxs_search.records.trial import TrialState
from loraxs_search.studies import lease
from loraxs_search.studies.storage import Storage

Say = Callable[..., object]
PARAMS = {"rank": 4, "learning_rate": 0.002, "target_modules": "query+value"}


def states(say: Say) -> tuple[str, str]:
    """Return what is said of the study, and of its trial."""
    printed = json.loads(say("status", "mine", "--json").ok)
    listed = {line.split()[0]: line.split()[2] for line in say("status").ok.splitlines()[1:]}
    assert printed["state"] == listed["mine"] or printed["state"] == "elsewhere"
    return printed["state"], printed["trials"][0]["state"]


def test_a_trial_of_a_study_that_nobody_works_on_does_not_run(driver, say):
    with driver.folder.lock():
        assert states(say) == ("running", "RUNNING")
    assert states(say) == ("interrupted", "INTERRUPTED")
    assert say("status", "mine").ok.splitlines()[1].split()[:2] == ["00000", "INTERRUPTED"]
    driver.end("00000", TrialState.COMPLETE)
    driver.finish()
    assert states(say) == ("finished", "COMPLETE")


def test_a_study_that_another_machine_has_taken_over_is_elsewhere(storage_folder, say, monkeypatch):
    driver = ScriptedDriver(study("mine", storage=str(storage_folder)))
    driver.begin()
    driver.train("00000", 20)
    assert states(say) == ("interrupted", "INTERRUPTED")
    held = lease.Lease(Storage(str(storage_folder)), "mine")
    held.take()
    assert states(say) == ("interrupted", "INTERRUPTED"), "this machine's own lock says more than its lease"
    monkeypatch.setattr(lease.platform, "node", lambda: "another")
    assert states(say) == ("elsewhere", "RUNNING")
    host = os.uname().nodename
    assert f"mine runs on {host}, or was killed there" in say("status", "mine").err
    assert f"study 'mine' runs on {host}, which takes it from {storage_folder}" in say("finish", "mine").err
    assert not list(driver.folder.inbox.waiting()), "nobody would read it"
    held.release()
    assert states(say) == ("interrupted", "INTERRUPTED")
    shutil.rmtree(storage_folder)
    assert states(say) == ("interrupted", "INTERRUPTED"), "a storage that is away changes nothing"


def test_a_search_that_is_to_finish_says_what_is_left(driver, say):
    command = Command("c", "finish", sent_by="ann")
    driver.journal.append(Commanded(command=command))
    driver.journal.append(Answered(command_id="c", state="done", text="so"))
    with driver.folder.lock():
        assert json.loads(say("status", "mine", "--json").ok)["finishing"] == "finished by a person (ann)"
        said = say("status", "mine").err
    assert "mine: running, 0/1 trial ended" in said, "of 16 that were planned"
    assert "finishing: finished by a person (ann); no new trials, 1 still running" in said


@pytest.fixture
def storage_folder(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


# ---- CSV -------------------------------------------------------------------------------------------------------------
def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_every_field_and_param(say):
    trials = [Tried(PARAMS, 0.8), Tried({"rank": 8, 'odd, "name"': "a,b"}, 0.7, state=TrialState.FAIL)]
    searched("mine", trials)
    first, second = rows_of(say("status", "mine", "--csv").ok)
    assert (first["trial_id"], first["state"], first["step"], first["score"]) == ("00000", "COMPLETE", "20", "0.8")
    assert first["params.target_modules"] == "query+value"
    assert first["params.learning_rate"] == "0.002"
    assert (second["score"], second["params.learning_rate"]) == ("", "")
    assert second['params.odd, "name"'] == "a,b"
    printed = json.loads(say("status", "mine", "--json").ok)["trials"][0]
    assert set(first) == (set(printed) - {"params"}) | {f"params.{name}" for name in (*PARAMS, 'odd, "name"')}


def test_studies_are_listed_as_csv_too(say):
    searched("mine", [Tried(PARAMS, 0.8)])
    (row,) = rows_of(say("status", "--csv").ok)
    assert (row["study"], row["task"], row["state"], row["trials"]) == ("mine", "t", "finished", "1/1")


def test_an_interrupted_study_is_told_and_ends(driver, say):
    *_, last = watch("mine")
    assert last.state == "interrupted"
    assert say("status", "mine", "--watch").ok.splitlines()[1].split()[:2] == ["00000", "INTERRUPTED"]


def test_contrary_options_are_refused(say):
    assert say("status", "mine", "--csv", "--json").is_error(2, "`--csv` must be the only form of output")
    assert say("status", "--watch").is_error(2, "`--watch` must be given with a study")
