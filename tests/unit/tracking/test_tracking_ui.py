"""Where the UI opens, and how it starts and ends, without starting a server."""

from __future__ import annotations

import json
import socket

import pytest
from support.tracked import Tracked

from loraxs_search.errors import StudyError, TrackingError
from loraxs_search.records.search import SearchPlan
from loraxs_search.tracking import store as store_module
from loraxs_search.tracking.store import connect, run_ui, ui_page


@pytest.fixture
def search(store_uri, tmp_path):
    """Record a search of a name; returns the study's id."""

    def record(study: str, folder: str = "") -> str:
        place = tmp_path / (folder or study)
        with Tracked(study, place, store_uri, "exp") as tracker:
            params = {"search.metric": "loss", "search.direction": "minimize", "search.parameters": "dropout, rank"}
            tracker.search_started("task: {}\n", SearchPlan(), params=params)
            tracker.trial_started("00007", {"rank": 4, "learning_rate": 0.002})
        return (place / "tracking.id").read_text()

    return record


@pytest.fixture
def taken():
    """A port of this machine that is taken, and the next one that is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def mlflow_is(tmp_path, monkeypatch):
    """Have `python -m mlflow` run these lines."""

    def lay(*code: str) -> None:
        (tmp_path / "mlflow.py").write_text("\n".join(code))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return lay


def test_a_taken_port_that_was_asked_for_is_said_before_anything_starts(store_uri, taken):
    with pytest.raises(TrackingError, match="must be free"):
        run_ui(store_uri, port=taken)


def test_the_next_free_port_is_taken_and_a_server_that_ends_is_said_with_its_last_words(
    store_uri, fresh_home, taken, mlflow_is, monkeypatch
):
    monkeypatch.setattr(store_module, "DEFAULT_PORT", taken)
    mlflow_is("import sys", "sys.exit('no such table on ' + sys.argv[sys.argv.index('--port') + 1])")
    with pytest.raises(TrackingError, match="no such table") as failed:
        run_ui(store_uri)
    assert failed.value.hint == f"see {fresh_home / 'ui.log'}"
    assert taken < int((fresh_home / "ui.log").read_text().split()[-1]) < taken + 20
    monkeypatch.setattr(store_module, "_MORE_PORTS", 1)
    with pytest.raises(TrackingError, match="but none is") as full:
        run_ui(store_uri)
    assert "--port" in str(full.value.hint)


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
        with pytest.raises(StudyError, match="must be recorded at") as unknown:
            ui_page(store_uri, name)
        assert "loraxs-search sync" in str(unknown.value.hint)
