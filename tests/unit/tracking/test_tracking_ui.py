"""Where the UI opens, and how it starts and ends, without starting a server."""

from __future__ import annotations

import json
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

    def record(study: str, folder: str = "", parameters: str = "dropout, rank") -> str:
        place = tmp_path / (folder or study)
        with Tracked(study, place, store_uri, "exp") as tracker:
            params = {"search.metric": "loss", "search.direction": "minimize", "search.parameters": parameters}
            tracker.search_started("task: {}\n", SearchPlan(), params=params)
            tracker.trial_started("00007", {"rank": 4, "learning_rate": 0.002})
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


def test_a_server_serves_its_own_ui():
    with pytest.raises(TrackingError, match="its own UI") as refused:
        ui_command("http://mlflow.example:5000")
    assert refused.value.hint == "open http://mlflow.example:5000 in a browser"


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


def test_a_view_fits_a_tag_and_of_many_the_oldest_of_ours_go(search, store_uri, monkeypatch):
    study_ids = [search(f"s{n}", parameters=", ".join(f"parameter_{i}" for i in range(300))) for n in range(3)]
    client, theirs = connect(store_uri), {"mlflow.sharedViewState.0a1b", "mlflow.sharedViewState.loraxs-odd"}
    experiment_id = client.get_experiment_by_name("exp").experiment_id
    for tag in theirs:
        client.set_experiment_tag(experiment_id, tag, "[1]")
    monkeypatch.setattr(ui_module, "_MAX_VIEWS", 2)
    for number in range(3):
        ui_page(store_uri, f"s{number}")
    tags = {tag for tag in client.get_experiment(experiment_id).tags if tag.startswith("mlflow.sharedViewState.")}
    assert tags == theirs | {f"mlflow.sharedViewState.loraxs-{study_id}" for study_id in study_ids[1:]}


def test_of_studies_of_one_name_that_of_this_machine_is_meant(search, store_uri):
    ours, theirs = search("s1", "here"), search("s1", "there")
    assert ui_page(store_uri, "s1")("").endswith(theirs), "the latest one"
    assert ui_page(store_uri, "s1", ours)("").endswith(ours)


def test_a_study_that_is_not_recorded_is_said(search, store_uri):
    search("s1")
    for name in ("s2", "s' or 1=1"):
        with pytest.raises(StudyError, match="must be recorded at") as unknown:
            ui_page(store_uri, name)
        assert "loraxs-search sync" in str(unknown.value.hint)
