"""`status` of studies that run, have ended, wait for somebody, or are another machine's; as events."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable

import pytest
from support.searched_studies import ScriptedDriver
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


def test_an_interrupted_study_is_told_and_ends(driver, say):
    *_, last = watch("mine")
    assert last.state == "interrupted"
    assert say("status", "mine", "--watch").ok.splitlines()[1].split()[:2] == ["00000", "INTERRUPTED"]


def test_what_is_watched_is_a_study(say):
    assert say("status", "--watch").is_error(2, "`--watch` must be given with a study")
