"""`sync` carries over what waits, of one study or of all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.studies import TASK
from support.studies import study as new_study
from support.tracked import Tracked

from loraxs_search.cli import run
from loraxs_search.errors import HomeError, StudyError
from loraxs_search.records import TrialState, to_json
from loraxs_search.search.driver import sync as sync_module
from loraxs_search.search.driver.sync import Synced, sync
from loraxs_search.studies import Storage, StudyFolder
from loraxs_search.tracking.store import connect

AWAY = "http://127.0.0.1:9"


def study(name: str, uri: str, *, told_at: str = AWAY, finished: bool = False) -> StudyFolder:
    """A study whose records were written while MLflow was away."""
    folder = new_study(name, uri)
    tracker = Tracked(name, folder.path, told_at, TASK.name)
    tracker.search_started("", folder.info.search)
    tracker.trial_started("00000", {"rank": 4})
    tracker.trial_finished("00000", TrialState.FAIL, "because")
    if finished:
        folder.write_candidates([])
    tracker.close(0.0)
    return folder


def states(uri: str) -> dict[str, str]:
    client = connect(uri)
    experiment = client.get_experiment_by_name("t")
    runs = client.search_runs([experiment.experiment_id])
    return {run.info.run_name: run.info.status for run in runs if run.data.tags["loraxs.kind"] == "search"}


def test_what_waits_is_carried_over_once(store_uri: str) -> None:
    study("one", store_uri)
    study("two", store_uri, finished=True)
    for _ in range(2):
        assert set(sync()) == {Synced("one", "complete"), Synced("two", "complete")}
        assert states(store_uri) == {"one": "RUNNING", "two": "FINISHED"}
    size = StudyFolder.open("two").journal_path.stat().st_size
    list(sync("two"))
    assert StudyFolder.open("two").journal_path.stat().st_size == size, "a repetition tells nothing"


def test_a_study_that_another_machine_went_on_with_is_left_to_it(store_uri: str, tmp_path: Path) -> None:
    """Its records are newer: those that wait here would set its runs back."""
    folder = study("one", store_uri)
    storage, shared = Storage(str(tmp_path / "shared")), tmp_path / "shared"
    info = replace(folder.info, storage=storage.uri)
    (folder.path / "study.json").write_text(to_json(info))
    journal = (folder.path / "journal.jsonl").read_bytes()
    assert [each.state for each in sync()] == ["waiting"], "who went on with it cannot be known"
    shared.mkdir()
    version = storage.write("one/journal.jsonl", journal, None)
    assert list(sync()) == [Synced("one", "complete")]
    later = journal + b'{"event": "driver_started", "since": 1.0, "at": 1.0}\n'
    storage.write("one/journal.jsonl", later, version)
    (synced,) = sync()
    assert (synced.state, synced.problem) == ("elsewhere", "another machine has gone on with it: sync there")


def test_an_end_that_is_recorded_here_is_in_the_copy_too(store_uri: str, tmp_path: Path) -> None:
    """Else another machine records it in its own way, and neither goes on with what the other has."""
    folder = study("one", store_uri, finished=True)
    (tmp_path / "shared").mkdir()
    storage = Storage(str(tmp_path / "shared"))
    (folder.path / "study.json").write_text(to_json(replace(folder.info, storage=storage.uri)))
    storage.write("one/journal.jsonl", folder.journal_path.read_bytes(), None)
    storage.write("one/candidates.json", (folder.path / "candidates.json").read_bytes(), None)
    assert list(sync()) == [Synced("one", "complete")]
    assert folder.journal().is_finished
    assert storage.get("one/journal.jsonl") == folder.journal_path.read_bytes()


def test_records_wait_while_mlflow_is_away(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sync_module, "_AWAY_AFTER_S", 0.5)
    study("gone", AWAY)
    assert run(["sync", "gone", "--json"]) == 1
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["study"], shown["state"]) == ("gone", "waiting")
    assert "127.0.0.1:9" in shown["problem"]


def test_a_study_at_work_is_left_to_its_driver(store_uri: str) -> None:
    folder = study("busy", store_uri)
    with folder.lock():
        assert list(sync("busy")) == [Synced("busy", "running")]
    with pytest.raises(StudyError, match="busy"):
        list(sync("idle"))


def test_the_command_prints_a_table(store_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    study("shown", store_uri)
    assert run(["sync"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["study", "records", "problem"]
    assert row.split() == ["shown", "complete"]


def test_a_folder_that_cannot_be_written_keeps_no_other_waiting(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study("one", store_uri)
    study("two", store_uri)
    lock = StudyFolder.lock

    def locked(folder: StudyFolder) -> object:
        if folder.name == "two":
            raise HomeError("No right to write it.", hint="ask its owner")
        return lock(folder)

    monkeypatch.setattr(StudyFolder, "lock", locked)
    assert set(sync()) == {Synced("two", "unreadable", "No right to write it."), Synced("one", "complete")}
