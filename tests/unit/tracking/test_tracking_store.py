"""The stores of MLflow: made, kept and read; where the UI opens, and how it starts and ends, without a server."""

from __future__ import annotations

import json
import os
import socket
import uuid
from pathlib import Path

import pytest
from support.tracked import Tracked

from loraxs_search.errors import HomeError, StudyError, TrackingError
from loraxs_search.log.events import TrialStarted
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.search import SearchPlan
from loraxs_search.tracking import store as store_module
from loraxs_search.tracking.store import connect, ensure_store, has_waiting, read_offset, run_ui, ui_page


def test_a_home_that_is_no_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="must be writable"):
        ensure_store(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")


def test_the_environment_of_the_user_stays(store_uri, fresh_home, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    connect(store_uri)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    before = (fresh_home / "mlflow.db").stat().st_mtime_ns
    ensure_store(store_uri)
    assert (fresh_home / "mlflow.db").stat().st_mtime_ns == before, "an existing store is left alone"
    assert not list(Path.cwd().iterdir())


def test_an_offset_at_which_no_line_begins_is_the_beginning(tmp_path):
    """As after a power cut: the offset was on the device, and of the last lines a part."""
    (tmp_path / "journal.jsonl").write_text("1234\n")
    for written, offset in (("5", 5), ("garbage", 0), ("-3", 0), ("3", 0), ("999999", 0)):
        (tmp_path / "mlflow.offset").write_text(written)
        assert read_offset(tmp_path) == offset


def test_a_line_torn_by_a_kill_is_waited_for_by_nobody(tmp_path):
    journal = StudyLog(tmp_path / "journal.jsonl")
    journal.append(TrialStarted(trial_id="t0", params={}))
    assert has_waiting(tmp_path)
    (tmp_path / "mlflow.offset").write_text(str((tmp_path / "journal.jsonl").stat().st_size))
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"event": "star')
    assert not has_waiting(tmp_path)


@pytest.fixture
def search(store_uri, tmp_path):
    """Record a search of a name; returns the study's id."""

    def record(study: str, folder: str = "") -> str:
        place = tmp_path / (folder or study)
        with Tracked(study, place, store_uri, "exp", study_id := uuid.uuid4().hex) as tracker:
            params = {"search.metric": "loss", "search.direction": "minimize", "search.parameters": "dropout, rank"}
            tracker.search_started("task: {}\n", SearchPlan(), params=params)
            tracker.trial_started("00007", {"rank": 4, "learning_rate": 0.002})
        return study_id

    return record


@pytest.fixture
def taken():
    """A port of this machine that is taken, and the next one that is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_that_was_asked_for_is_said_before_anything_starts(store_uri, taken):
    with pytest.raises(TrackingError, match="must be free"):
        run_ui(store_uri, port=taken)


def test_the_next_free_port_is_taken_and_the_last_words_of_a_server_are_said(
    store_uri, fresh_home, taken, tmp_path, monkeypatch
):
    monkeypatch.setattr(store_module, "DEFAULT_PORT", taken)
    code = "import sys\nsys.exit('no such table on ' + sys.argv[sys.argv.index('--port') + 1])"
    (tmp_path / "mlflow.py").write_text(code)  # which `python -m mlflow` runs
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TrackingError, match="no such table") as failed:
        run_ui(store_uri)
    assert failed.value.hint == f"see {fresh_home / 'ui.log'}"
    assert taken < int((fresh_home / "ui.log").read_text().split()[-1]) < taken + 20
    monkeypatch.setattr(store_module, "_MORE_PORTS", 1)
    with pytest.raises(TrackingError, match="but none is", check=lambda it: "--port" in it.hint):
        run_ui(store_uri)


# ---- where it opens --------------------------------------------------------------------------------------------------
def test_a_study_without_a_view_gets_one_when_it_is_opened(search, store_uri):
    assert ui_page(store_uri)("http://h:1") == "http://h:1/#/experiments?workflowType=machine_learning"
    study_id = search("s1")
    link = ui_page(store_uri, "s1")("http://h:1")
    assert link.endswith(f"/runs?workflowType=machine_learning&viewStateShareKey=loraxs-{study_id}")
    experiment = connect(store_uri).get_experiment_by_name("exp")
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.loraxs-{study_id}"])
    state = json.loads(view["state"])
    (parent,) = connect(store_uri).search_runs([experiment.experiment_id], "tags.`loraxs.kind` = 'search'")
    assert view["name"] == "s1"
    assert state["searchFilter"] == f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    assert len(connect(store_uri).search_runs([experiment.experiment_id], state["searchFilter"])) == 1
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`loss`", True)
    for column in ("metrics.`loss`", "params.`dropout`", "metrics.`stored_bytes`", "tags.`loraxs.reason`"):
        assert column in state["selectedColumns"]
    assert ui_page(store_uri, "s1")("http://h:1") == link
    assert connect(store_uri).get_experiment_by_name("exp").tags == experiment.tags


def test_of_studies_of_one_name_that_of_this_machine_is_meant(search, store_uri):
    ours, theirs = search("s1", "here"), search("s1", "there")
    assert ui_page(store_uri, "s1")("").endswith(theirs), "the latest one"
    assert ui_page(store_uri, "s1", ours)("").endswith(ours)


def test_a_study_that_is_not_recorded_is_said(search, store_uri):
    search("s1")
    for name in ("s2", "s' or 1=1"):
        with pytest.raises(StudyError, match="must be recorded at", check=lambda it: "loraxs-search sync" in it.hint):
            ui_page(store_uri, name)
