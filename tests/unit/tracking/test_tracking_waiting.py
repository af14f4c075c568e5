"""A store that is away, behind, slow or unwilling: what is told is kept, and nobody waits for it longer than asked."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from support.ports import free_port

from loraxs_search.records.trial import TrialState
from loraxs_search.tracking import tracker as tracker_module
from loraxs_search.tracking.store import connect


@pytest.fixture
def away_uri():
    return f"http://127.0.0.1:{free_port()}"


def test_while_the_store_is_away_calls_are_quick_and_nothing_is_lost(open_tracker, record, look, away_uri, caplog):
    tracker = open_tracker(uri=away_uri)
    began = time.monotonic()
    record(tracker)
    assert time.monotonic() - began < 5, "a call to a server that is away takes longer"
    assert not tracker.flush(timeout=0.2)
    deadline = time.monotonic() + 20
    while tracker.trouble is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tracker.trouble is not None
    assert "must be reachable" in tracker.trouble
    assert not tracker.close(timeout=0.2)
    assert "journal.jsonl" in caplog.text
    later = open_tracker()
    assert later.flush()
    seen = look()
    assert set(seen.children) == {"t0", "t1", "t2"}
    assert seen.points["t2"]["accuracy"] == [(40, 0.54), (80, 0.58)]
    assert later.trouble is None


def test_a_store_that_says_nothing_is_waited_for_as_long_as_asked(open_tracker, record, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *_, **__: over.wait(30))
    monkeypatch.setattr(tracker_module, "_SILENT_S", 0.5)
    tracker = open_tracker()
    record(tracker)
    assert tracker.drain(0.1) == "MLflow has said nothing for 0.5 s"
    began = time.monotonic()
    assert not tracker.close(timeout=0.0)
    assert time.monotonic() - began < 3  # of which the writer is given one
    over.set()


def test_what_mlflow_refuses_is_left_out_and_the_rest_goes_on(
    open_tracker, look, study_dir, hyperparameters, report, caplog
):
    tracker = open_tracker()
    tracker.trial_started("t0", {"rank": 4}, hyperparameters)
    tracker.adapter_logged("t0", study_dir / "no such folder")
    tracker.trial_reported(report("t0", 40))
    tracker.trial_finished("t0", TrialState.COMPLETE)
    assert tracker.flush()
    seen = look()
    assert seen.children["t0"].data.params["rank"] == "4"
    assert seen.points["t0"]["accuracy"] == [(40, 0.5)]
    assert seen.children["t0"].info.status == "FINISHED"
    assert caplog.text.count("refuses an event") == 1


def test_of_two_searches_that_insert_one_row_the_refused_one_loses_nothing(open_tracker, record, look, monkeypatch):
    """As MLflow's store answers where both looked for the row before either wrote it."""
    write, refusals = MlflowClient.log_text, iter(range(3))

    def refused_thrice(client: MlflowClient, *text: str) -> None:
        if next(refusals, None) is not None:
            raise MlflowException("UNIQUE constraint failed", error_code=BAD_REQUEST)
        write(client, *text)

    monkeypatch.setattr(MlflowClient, "log_text", refused_thrice)
    tracker = open_tracker()
    record(tracker)
    assert tracker.close()
    assert next(refusals, None) is None
    (parent,) = look().parents
    assert parent.data.params


def test_the_runs_of_an_experiment_that_was_deleted_wait_until_it_is_restored(
    open_tracker, record, look, study_dir, store_uri, caplog
):
    client = connect(store_uri)
    experiment = client.create_experiment("exp")
    client.delete_experiment(experiment)
    tracker = open_tracker()
    record(tracker)
    assert not tracker.close(timeout=0.2)
    assert "must be active, but it was deleted" in caplog.text
    assert "refuses" not in caplog.text
    client.restore_experiment(experiment)
    tracker = open_tracker()
    assert tracker.flush()
    assert set(look().children) == {"t0", "t1", "t2"}
    client.delete_experiment(experiment)  # while a search is at work
    record(tracker)
    assert not tracker.close(timeout=0.2)
    assert "refuses" not in caplog.text


def test_a_server_is_told_of_several_trials_at_once_and_again_of_what_fails(
    open_tracker, record, look, away_uri, mlflow_server, adapter_folder, monkeypatch
):
    send, log, together = MlflowClient.log_batch, MlflowClient.log_model_artifacts, threading.Barrier(2)
    met, failed = threading.Event(), threading.Event()

    def meeting(client: MlflowClient, run_id: str, *batch: Any, **options: Any) -> None:
        if client.get_run(run_id).data.tags["loraxs.kind"] == "trial" and not met.is_set():
            together.wait(timeout=60)
            met.set()
        send(client, run_id, *batch, **options)

    def failing(client: MlflowClient, *where: str) -> None:
        log(client, *where)
        if not failed.is_set():
            failed.set()
            raise MlflowException("the answer was lost")

    monkeypatch.setattr(MlflowClient, "log_batch", meeting)
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", failing)
    early = open_tracker(uri=away_uri)
    record(early)
    for trial in ("t0", "t1", "t2"):
        early.adapter_logged(trial, adapter_folder)
    early.close(timeout=0.1)
    assert open_tracker(uri=mlflow_server.uri).flush(timeout=120)
    assert met.is_set()
    assert failed.is_set()
    seen = look(mlflow_server.uri)
    assert {trial: points["accuracy"] for trial, points in seen.points.items()} == {
        f"t{number}": [(40, 0.54), (80, 0.58)] for number in range(3)
    }
    assert sorted(model.tags["trial_id"] for model in seen.models) == ["t0", "t1", "t2"]
    assert all(model.status == LoggedModelStatus.READY for model in seen.models)
