"""What a search has found, as Python and notebooks show it.

A finished study that is resumed is shown as it ended, and its records in MLflow stay as they are.

A search leaves a report in its folder and in MLflow, once; one that cannot be made stops nothing.

`sync` carries over what waits, of one study or of all.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.studies import TASK, Tried, confirm, searched
from support.studies import study as new_study
from support.tracked import Tracked

from loraxs_search.cli._main import run
from loraxs_search.errors import HomeError, StudyError
from loraxs_search.log.events import DriverStarted, TrainingEnded, TrialEnded, TrialStarted
from loraxs_search.records.codec import to_json
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.html import page
from loraxs_search.search.driver import result as sync_module
from loraxs_search.search.driver.launch import resume
from loraxs_search.search.driver.result import SearchResult, Synced, open_tracker, record_end, sync
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.mirror import fetch, mirrored
from loraxs_search.studies.storage import Storage
from loraxs_search.tracking.store import connect


def test_a_result_has_a_row_for_each_trial_best_first(fresh_home):
    folder = searched("s", [Tried({"rank": 4}, 0.7), Tried({"rank": 8}, 0.9), Tried({}, 0.9, state=TrialState.PRUNED)])
    confirm(folder, "00000", [0.91], answers=[0, 1], labels=[0, 1])
    result = SearchResult("s", tuple(folder.journal().records.values()), tuple(folder.candidates() or ()), 12.3)
    assert repr(result) == "<SearchResult s: 2 of 3 trials complete, 12 s>"
    rows = [(row.trial_id, row.finalist, row.test_score) for row in result.leaderboard()]
    assert rows == [("00001", "", None), ("00000", "00000", 1.0), ("00002", "", None)]
    with pytest.raises(StudyError, match="gone"):
        SearchResult("gone", (), (), 1.0).leaderboard()


def runs(uri: str) -> tuple[Any, list[Any]]:
    """Return a client, and the runs of searches there."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("t")
    return client, client.search_runs([experiment.experiment_id], "tags.`loraxs.kind` = 'search'")


def test_an_end_that_a_killed_driver_did_not_record_is_recorded_once_as_it_was(store_uri, monkeypatch):
    """The driver worked for 75 s, long ago, and MLflow does not know of its end."""
    notice, began, ended = "the time budget of 60 s is used up", 1_000_000.0, 1_000_075.0
    folder = new_study("s", store_uri)
    with monkeypatch.context() as patch:
        patch.setattr("loraxs_search.log.clock.steady_time", lambda: ended)
        journal = folder.journal()
        journal.append(DriverStarted(since=began, plan=folder.info.search))
        journal.append(TrialStarted(trial_id="00000", params={"rank": 4}))
        journal.append(TrialEnded(trial_id="00000", state=TrialState.PRUNED, reason=notice))
        journal.append(TrainingEnded(notice=notice))
    folder.write_candidates([])
    for _ in range(2):
        result = resume("s")
        assert (result.wall_s, result.notice) == (75.0, notice)
        client, (run,) = runs(store_uri)
        assert (run.info.status, run.info.end_time) == ("FINISHED", ended * 1000)
        assert [each.value for each in client.get_metric_history(run.info.run_id, "wall_s")] == [75.0]
        assert run.data.tags["loraxs.notice"] == notice


@pytest.fixture
def over(store_uri, monkeypatch):
    """A search that ended, whose driver was killed before it could say so; its folder is at its store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    folder = searched("s", [Tried({"rank": 4}, 0.8), Tried({"rank": 8}, 0.7)])
    with Tracked("s", folder.path, store_uri, "t", folder.info.study_id) as tracker:
        tracker.search_started("", folder.info.search)
    object.__setattr__(folder.info, "tracking_uri", store_uri)
    return folder


def kept(uri: str) -> list[str]:
    client, (run,) = runs(uri)
    return [artifact.path for artifact in client.list_artifacts(run.info.run_id)]


def test_a_finished_search_gets_its_report_once_unless_it_is_not_in_the_folder(over, store_uri):
    resume("s")
    path = over.path / "report.html"
    assert "The best so far" in path.read_text()
    assert kept(store_uri) == ["report.html", "space.yaml"]
    log = over.journal_path.read_bytes()
    path.write_text("as it was")
    resume("s")
    assert path.read_text() == "as it was"
    assert over.journal_path.read_bytes() == log
    path.unlink()  # as on another machine: a storage keeps no copy of it
    resume("s")
    assert path.is_file()
    assert kept(store_uri) == ["report.html", "space.yaml"]


def test_a_report_that_cannot_be_made_stops_nothing(over, store_uri, monkeypatch, caplog):
    with over.lock(), Tracked("s", over.path, store_uri, "t", over.info.study_id) as tracked:
        record_end(over, tracked.journal)
    report = over.path / "report.html"
    assert 'class="state finished"' in report.read_text(), "while its driver holds it, it is not running"
    report.unlink()

    def broken(folder: object) -> str:
        raise ZeroDivisionError("no pen")

    monkeypatch.setattr(page, "write_report", broken)
    assert resume("s").study == "s"
    assert "no report was written (no pen); try `loraxs-search report s`" in caplog.text
    assert not report.exists()


AWAY = "http://127.0.0.1:9"


def study(name: str, uri: str, *, finished: bool = False) -> StudyFolder:
    """A study whose records were written while MLflow was away."""
    folder = new_study(name, uri)
    tracker = Tracked(name, folder.path, AWAY, TASK.name)
    tracker.search_started("", folder.info.search)
    tracker.trial_started("00000", {"rank": 4})
    tracker.trial_finished("00000", TrialState.FAIL, "because")
    if finished:
        folder.write_candidates([])
    tracker.close(0.0)
    return folder


def test_what_waits_is_carried_over_once(store_uri):
    study("one", store_uri)
    study("two", store_uri, finished=True)
    for _ in range(2):
        assert set(sync()) == {Synced("one", "complete"), Synced("two", "complete")}
        shown = {run.info.run_name: run.info.status for run in runs(store_uri)[1]}
        assert shown == {"one": "RUNNING", "two": "FINISHED"}
    size = StudyFolder.open("two").journal_path.stat().st_size
    list(sync("two"))
    assert StudyFolder.open("two").journal_path.stat().st_size == size, "a repetition tells nothing"


@pytest.fixture
def stored(store_uri, tmp_path):
    """Makes a study with a copy of its log; returns it, the storage, and the log's version there."""
    (tmp_path / "shared").mkdir()
    storage = Storage(str(tmp_path / "shared"))

    def make(**how: bool) -> tuple[StudyFolder, Storage, str]:
        folder = study("one", store_uri, **how)
        (folder.path / "study.json").write_text(to_json(replace(folder.info, storage=storage.uri)))
        return folder, storage, storage.write("one/journal.jsonl", folder.journal_path.read_bytes(), None)

    return make


def test_a_study_that_another_machine_went_on_with_is_left_to_it(stored, tmp_path):
    """Its records are newer: those that wait here would set its runs back."""
    folder, storage, version = stored()
    journal = folder.journal_path.read_bytes()
    (tmp_path / "shared").rename(tmp_path / "away")
    assert [each.state for each in sync()] == ["waiting"], "who went on with it cannot be known"
    (tmp_path / "away").rename(tmp_path / "shared")
    assert list(sync()) == [Synced("one", "complete")]
    storage.write("one/journal.jsonl", journal + b'{"event": "DriverStarted", "since": 1.0, "at": 1.0}\n', version)
    assert [each.state for each in sync()] == ["elsewhere"]


def test_a_machine_that_goes_on_from_an_early_copy_goes_on_in_the_same_runs(store_uri, tmp_path, monkeypatch):
    """The copy was made before MLflow knew of the study, and stayed so while the storage was away."""
    (tmp_path / "shared").mkdir()
    folder = new_study("s", store_uri, storage=Storage(str(tmp_path / "shared")).uri)
    for home in ("", "another"):
        if home:
            monkeypatch.setenv("LORAXS_HOME", str(tmp_path / home))
            folder = fetch("s", Storage(str(tmp_path / "shared")))
        with folder.lock(), mirrored(folder, pytest.fail) as mirror:
            pass
        folder.journal().append(DriverStarted(since=0.0, plan=folder.info.search))
        assert open_tracker(folder, store_uri, mirror).close()
    assert len(runs(store_uri)[1]) == 1


def test_an_end_that_is_recorded_here_is_in_the_copy_too(stored):
    """Else another machine records it in its own way, and neither goes on with what the other has."""
    folder, storage, _ = stored(finished=True)
    storage.write("one/candidates.json", (folder.path / "candidates.json").read_bytes(), None)
    assert list(sync()) == [Synced("one", "complete")]
    assert folder.journal().is_finished
    assert storage.get("one/journal.jsonl") == folder.journal_path.read_bytes()


def test_records_wait_while_mlflow_is_away(store_uri, monkeypatch, capsys):
    monkeypatch.setattr(sync_module, "_AWAY_AFTER_S", 0.5)
    study("gone", AWAY)
    assert run(["sync", "gone", "--json"]) == 1
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["study"], shown["state"]) == ("gone", "waiting")
    assert "127.0.0.1:9" in shown["problem"]


def test_a_study_at_work_is_left_to_its_driver_and_one_that_cannot_be_written_keeps_no_other_waiting(
    store_uri, monkeypatch
):
    with study("busy", store_uri).lock():
        assert list(sync("busy")) == [Synced("busy", "running")]
    with pytest.raises(StudyError, match="busy"):
        list(sync("idle"))
    study("two", store_uri)
    lock = StudyFolder.lock

    def locked(folder: StudyFolder) -> object:
        if folder.name == "two":
            raise HomeError("No right to write it.", hint="ask its owner")
        return lock(folder)

    monkeypatch.setattr(StudyFolder, "lock", locked)
    assert set(sync()) == {Synced("two", "unreadable", "No right to write it."), Synced("busy", "complete")}
