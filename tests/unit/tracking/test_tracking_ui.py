"""Where the UI opens, and how it starts and ends, without starting a server."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from support.tracked import Tracked

from loraxs_search.errors import StudyError, TrackingError
from loraxs_search.records.search import SearchPlan
from loraxs_search.tracking import ui as ui_module
from loraxs_search.tracking.store import connect
from loraxs_search.tracking.ui import run_ui, ui_command, ui_page


@pytest.fixture
def search(store_uri, tmp_path):
    """Record a search of a name; returns the study's id."""

    def record(study: str, folder: str = "") -> str:
        place = tmp_path / (folder or study)
        with Tracked(study, place, store_uri, "exp") as tracker:
            params = {"search.metric": "loss", "search.direction": "minimize"}
            tracker.search_started("task: {}\n", SearchPlan(), params=params)
        return (place / "tracking.id").read_text()

    return record


@pytest.fixture
def taken():
    """A port of this machine that is taken, and the next one that is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def serving(*code: str):
    """A command in place of MLflow's."""
    return lambda uri, **_: [sys.executable, "-c", "\n".join(code)]


def test_the_ui_serves_the_embedded_store_with_its_artifacts(store_uri, fresh_home):
    command = ui_command(store_uri, port=5001)
    assert command[1:4] == ["-m", "mlflow", "server"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--backend-store-uri"] == store_uri
    assert options["--artifacts-destination"] == str(fresh_home / "artifacts")
    assert options["--port"] == "5001"


def test_a_server_serves_its_own_ui():
    with pytest.raises(TrackingError, match="its own UI") as refused:
        ui_command("http://user:secret@mlflow.example:5000")
    assert refused.value.hint == "open http://***@mlflow.example:5000 in a browser"


def test_a_taken_port_that_was_asked_for_is_said_before_anything_starts(store_uri, taken):
    with pytest.raises(TrackingError, match="must be free"):
        run_ui(store_uri, port=taken)


def test_without_a_port_the_next_free_one_is_taken(taken, monkeypatch):
    monkeypatch.setattr(ui_module, "DEFAULT_PORT", taken)
    assert taken < ui_module._free_port("127.0.0.1", None) < taken + 20
    monkeypatch.setattr(ui_module, "_MORE_PORTS", 1)
    with pytest.raises(TrackingError, match="but none is") as full:
        ui_module._free_port("127.0.0.1", None)
    assert "--port" in str(full.value.hint)


def test_a_server_that_ends_before_it_answers_is_said_with_its_last_words(store_uri, fresh_home, monkeypatch):
    monkeypatch.setattr(ui_module, "ui_command", serving("import sys", "sys.exit('no such table')"))
    with pytest.raises(TrackingError, match="no such table") as failed:
        run_ui(store_uri)
    assert failed.value.hint == f"see {fresh_home / 'ui.log'}"


def test_whoever_is_interrupted_while_it_starts_leaves_no_server(store_uri, fresh_home, monkeypatch):
    monkeypatch.setattr(ui_module, "ui_command", serving("import time", "time.sleep(600)"))
    made: list[int] = []

    def interrupted(address, process, log):
        made.append(process.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(ui_module, "_await", interrupted)
    assert run_ui(store_uri) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(made[0], 0)


# ---- where it opens --------------------------------------------------------------------------------------------------
def test_without_a_study_it_opens_all_experiments(store_uri):
    assert ui_page(store_uri)("http://h:1") == "http://h:1/#/experiments?workflowType=machine_learning"


def test_a_study_without_a_view_gets_one_when_it_is_opened(search, store_uri):
    study_id = search("s1")
    link = ui_page(store_uri, "s1")("http://h:1")
    assert link.endswith(f"/runs?workflowType=machine_learning&viewStateShareKey=loraxs-{study_id}")
    tags = connect(store_uri).get_experiment_by_name("exp").tags
    assert r"metrics.`loss`" in tags[f"mlflow.sharedViewState.loraxs-{study_id}"]
    assert ui_page(store_uri, "s1")("http://h:1") == link
    assert connect(store_uri).get_experiment_by_name("exp").tags == tags


def test_of_studies_of_one_name_that_of_this_machine_is_meant(search, store_uri):
    ours, theirs = search("s1", "here"), search("s1", "there")
    assert ui_page(store_uri, "s1")("").endswith(theirs), "the latest one"
    assert ui_page(store_uri, "s1", ours)("").endswith(ours)


@pytest.mark.parametrize("name", ["s2", "s' or 1=1", ""])
def test_a_study_that_is_not_recorded_is_said(search, store_uri, name):
    search("s1")
    with pytest.raises(StudyError, match="must be recorded at") as unknown:
        ui_page(store_uri, name)
    assert "loraxs-search sync" in str(unknown.value.hint)
