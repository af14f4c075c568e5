"""What is told of a search reaches MLflow once, and what a store that is away, behind or unwilling lacks is kept."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from support.toys import HYPERPARAMETERS, report
from support.tracked import Tracked

from loraxs_search.log.events import TrialStarted
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.search import Baseline, SearchPlan
from loraxs_search.records.trial import AdapterSize, TrialState
from loraxs_search.tracking import tracker as tracker_module
from loraxs_search.tracking.store import connect
from loraxs_search.tracking.tracker import Tracker

AWAY = "http://127.0.0.1:9"


def look(uri: str) -> SimpleNamespace:
    """Read every run, point and logged model of the experiment `exp`; asserts one child per trial."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("exp").experiment_id
    parents, children, points = [], {}, {}
    for run in client.search_runs([experiment]):
        if run.data.tags["loraxs.kind"] == "search":
            parents.append(run)
            continue
        trial_id = run.data.tags["trial_id"]
        assert trial_id not in children
        children[trial_id] = run
        points[trial_id] = {
            key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
    models = list(client.search_logged_models([experiment]))
    return SimpleNamespace(parents=parents, children=children, points=points, models=models)


@pytest.fixture
def adapter_folder(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"R")
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def study_dir(tmp_path):
    return tmp_path / "studies" / "s1"


@pytest.fixture
def open_tracker(store_uri, study_dir):
    opened: list[Tracked] = []

    def make(uri: str = store_uri) -> Tracked:
        opened.append(Tracked("s1", study_dir, uri, "exp"))
        return opened[-1]

    yield make
    for tracker in opened:
        tracker.close(timeout=0.1)


def record(tracker: Tracked) -> None:
    """Tell a tracker of a search of three trials, one of each end."""
    tracker.search_started("task:\n  name: toy\n", SearchPlan(trials=3), params={"task": "toy"}, gpus=("H100",))
    ends = (TrialState.COMPLETE, "ran all steps"), (TrialState.PRUNED, "weak at step 80"), (TrialState.FAIL, "NaN")
    for number, (state, reason) in enumerate(ends):
        trial_id = f"t{number}"
        tracker.trial_started(trial_id, {"rank": 4, "learning_rate": 0.001}, HYPERPARAMETERS)
        for step in (40, 80):
            told, size = report(trial_id, step, 0.5 + step / 1000), AdapterSize(32, 10, 400)
            tracker.trial_reported(replace(told, device_s=step / 10, size=size))
        tracker.trial_finished(trial_id, state, reason, wall_s=12.5)
    tracker.search_finished("FINISHED", {"best_accuracy": 0.58, "best_trial": "t0"})


def test_a_search_is_a_run_with_a_child_per_trial(open_tracker, store_uri, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef")  # another's, which changes nothing
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    tracker = open_tracker()
    record(tracker)
    assert tracker.flush()
    assert not (tmp_path / "other.db").exists()
    assert not list(Path.cwd().iterdir())
    seen = look(store_uri)

    (parent,) = seen.parents
    params, tags = parent.data.params, parent.data.tags
    assert (params["task"], params["search.trials"], params["search.checkpoint"]) == ("toy", "3", "last")
    assert (tags["version.mlflow"], tags["version.torch"]) == (version("mlflow"), version("torch"))
    assert tags["hardware.gpus"] == "H100"
    assert (tags["loraxs.best_trial"], parent.data.metrics["best_accuracy"]) == ("t0", 0.58)
    assert parent.info.status == "FINISHED"
    space = connect(store_uri).download_artifacts(parent.info.run_id, "space.yaml")
    assert Path(space).read_text() == "task:\n  name: toy\n"

    assert set(seen.children) == {"t0", "t1", "t2"}
    for trial_id, child in seen.children.items():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["loraxs.study_id"] == tags["loraxs.study_id"]
        assert child.info.run_name == f"{trial_id} r4 lr 1e-3"
    status = {trial_id: (run.info.status, run.data.tags["loraxs.state"]) for trial_id, run in seen.children.items()}
    assert status == {"t0": ("FINISHED", "COMPLETE"), "t1": ("FINISHED", "PRUNED"), "t2": ("FAILED", "FAIL")}
    child, points = seen.children["t1"].data, seen.points["t1"]
    assert [child.params[name] for name in ("rank", "lr_schedule", "num_target_modules")] == ["4", "linear", "1"]
    assert points["accuracy"] == [(40, 0.54), (80, 0.58)]
    assert points["train_loss"] == [(40, 0.5), (80, 0.5)]
    assert (points["r_parameters"], points["stored_bytes"]) == ([(0, 32.0)], [(0, 400.0)])
    assert (child.metrics["wall_s"], child.metrics["total_device_s"]) == (12.5, 8.0)
    assert child.tags["loraxs.reason"] == "weak at step 80"


def test_replaying_everything_changes_nothing(open_tracker, store_uri, study_dir, adapter_folder):
    tracker = open_tracker()
    record(tracker)
    tracker.trial_started("t3", {"rank": 4096}, None)  # its params resolve to nothing
    tracker.trial_finished("t3", TrialState.FAIL, "`rank` must be in 1..384", wall_s=400.0, worked_s=30.0)
    tracker.adapter_logged("t0", adapter_folder)
    assert tracker.close()
    before = look(store_uri)
    assert before.children["t3"].data.params == {"rank": "4096"}
    assert before.children["t3"].data.metrics["wall_s"] == 30.0, "it leaves out when no driver was at work"
    (study_dir / "mlflow.offset").unlink()
    again = open_tracker()
    assert again.waiting
    again.trial_reported(report("t0", 80, 0.9))  # a search that goes on may tell what it has told
    assert again.flush()
    after = look(store_uri)
    assert len(after.parents) == 1
    assert after.points == before.points
    known = [
        [(trial, run.info.run_id, run.info.end_time) for trial, run in seen.children.items()]
        for seen in (before, after)
    ]
    assert known[0] == known[1]
    assert [model.model_id for model in after.models] == [model.model_id for model in before.models]


def test_baselines_are_metrics_of_the_searchs_run(open_tracker, store_uri):
    constant = Baseline("constant", {"accuracy": 0.5}, {"accuracy": 0.52}, answer=1)
    features = Baseline("features", {"accuracy": 0.7}, failed="too slow")
    tracker = open_tracker()
    record(tracker)
    tracker.baselines_measured([])
    tracker.baselines_measured([constant, features])
    assert tracker.close()
    again = open_tracker()
    again.baselines_measured([constant, features])
    assert not again.waiting, "told twice they count once"
    (parent,) = look(store_uri).parents
    assert {name: value for name, value in parent.data.metrics.items() if name.startswith("baseline.")} == {
        "baseline.constant.validation.accuracy": 0.5,
        "baseline.constant.test.accuracy": 0.52,
        "baseline.features.validation.accuracy": 0.7,
    }
    assert parent.data.tags["loraxs.baseline.constant.answer"] == "1"
    assert parent.data.tags["loraxs.baseline.features.failed"] == "too slow"


def test_a_search_that_goes_on_uses_its_run_and_replaces_its_report(open_tracker, store_uri, study_dir, caplog):
    report = study_dir / "report.html"
    tracker = open_tracker()
    tracker.search_started("task: {}\n", SearchPlan(trials=3))
    assert not tracker.has_report
    report.write_text("<p>1</p>")
    tracker.report_written(report)
    tracker.search_finished("FINISHED")
    assert tracker.close()
    again = open_tracker()
    assert again.has_report
    again.search_started("task: {}\n", SearchPlan(trials=20))  # a changed param, which MLflow would refuse
    assert not again.has_report
    report.write_text("<p>2</p>")
    again.report_written(report)
    assert again.flush()
    assert "refuses" not in caplog.text
    again.report_written(study_dir / "gone.html")
    assert again.close()
    (parent,) = look(store_uri).parents
    assert parent.info.status == "RUNNING"
    kept = connect(store_uri).download_artifacts(parent.info.run_id, "report.html")
    assert Path(kept).read_text() == "<p>2</p>"
    assert "gone.html is gone" in caplog.text, "set aside, and nothing waits for it"


def test_a_run_whose_answer_was_lost_is_found_and_not_made_again(open_tracker, store_uri, monkeypatch):
    create, lost = MlflowClient.create_run, iter(range(3))

    def failing(client: MlflowClient, *where: Any, **options: Any) -> Any:
        made = create(client, *where, **options)
        if "trial_id" in options["tags"] and next(lost, None) is not None:
            raise ConnectionError("the answer was lost")
        return made

    monkeypatch.setattr(MlflowClient, "create_run", failing)
    tracker = open_tracker()
    tracker.trial_started("t0", {}, HYPERPARAMETERS)
    assert tracker.flush()
    assert set(look(store_uri).children) == {"t0"}


def test_the_run_of_a_trial_lost_with_a_log_is_not_that_of_the_next_one_of_its_number(tmp_path, store_uri, caplog):
    """A machine told MLflow of t1 and was lost before t1 was in the copy that another one goes on from."""

    def told(folder: Path, trial_id: str, at: float, *, is_ours: bool = True) -> None:
        tracker = Tracker("s1", folder, store_uri, "exp", study_id="1", is_ours=lambda: is_ours)
        started = TrialStarted(at=at, trial_id=trial_id, params={}, hyperparameters=HYPERPARAMETERS)
        StudyLog(folder / "journal.jsonl", "s1").append(started)
        tracker.close(timeout=10.0 if is_ours else 1.0)

    def runs() -> dict[str, str]:
        return {trial_id: run.info.run_id for trial_id, run in look(store_uri).children.items()}

    lost = tmp_path / "lost"
    lost.mkdir()
    told(lost, "t0", 2.0)
    copy = shutil.copytree(lost, tmp_path / "copy")
    told(lost, "t1", 3.0)
    before, unsure = runs(), shutil.copytree(copy, tmp_path / "unsure")
    told(unsure, "t1", 6.0, is_ours=False)
    assert "may have been taken over" in caplog.text
    assert runs() == before
    told(copy, "t1", 6.0)
    after, aside = runs(), "t1, lost with the log of another machine"
    assert after == before | {aside: before["t1"], "t1": after["t1"]}
    assert after["t1"] != before["t1"]
    assert look(store_uri).children[aside].info.status == "KILLED"
    (copy / "mlflow.offset").unlink()
    tracker = Tracker("s1", copy, store_uri, "exp", study_id="1", is_ours=lambda: True)
    assert tracker.close()
    assert runs() == after


def test_adapters_become_logged_models_of_runs_and_refits_of_their_trials(
    open_tracker, store_uri, adapter_folder, tmp_path
):
    (refit := tmp_path / "refit").mkdir()
    (refit / "adapter_model.safetensors").write_bytes(b"of another seed")
    tracker, trial = open_tracker(), "a/b:c.1"  # characters a logged model's name may not hold
    tracker.trial_started(trial, {}, HYPERPARAMETERS)
    tracker.adapter_logged(trial, adapter_folder)
    tracker.adapter_logged(trial, adapter_folder)
    tracker.adapter_logged("00000.2", refit, trial)
    assert tracker.flush()
    seen = look(store_uri)
    assert list(seen.children) == [trial], "a refit is no trial"
    run, models = seen.children[trial], {model.tags["trial_id"]: model for model in seen.models}
    assert len(models) == len(seen.models) == 2
    assert {(str(model.status), model.source_run_id) for model in seen.models} == {("READY", run.info.run_id)}
    assert run.data.tags["loraxs.model_id"] == models[trial].model_id
    assert run.data.tags["loraxs.model_id.refit"] == models["00000.2"].model_id
    kept = {path.name: path.read_bytes() for path in Path(models[trial].artifact_location).iterdir()}
    assert kept == {path.name: path.read_bytes() for path in adapter_folder.iterdir()}


def test_the_name_of_a_run_has_number_rank_modules_and_rate_first(open_tracker, store_uri):
    tracker = open_tracker()
    first = {"scale": 0.5, "learning_rate": 0.002, "target_modules": "attention", "rank": 16}
    tracker.trial_started("00012", first)
    tracker.trial_started("00001", {"target_modules": "a" * 60, "head": "b" * 30, "learning_rate": 1e-9})
    assert tracker.flush()
    assert {trial_id: run.info.run_name for trial_id, run in look(store_uri).children.items()} == {
        "00012": "#12 r16 attention lr 2e-3 scale 0.5",
        "00001": f"#1 {'a' * 23}… lr 1e-9",
    }


def test_while_the_store_is_away_calls_are_quick_and_nothing_is_lost(open_tracker, store_uri, caplog):
    tracker = open_tracker(AWAY)
    began = time.monotonic()
    record(tracker)
    assert time.monotonic() - began < 5, "a call to a server that is away takes longer"
    assert "must be reachable" in tracker.drain(0.2)
    assert not tracker.close(timeout=0.2)
    assert "journal.jsonl" in caplog.text
    later = open_tracker()
    assert later.flush()
    seen = look(store_uri)
    assert set(seen.children) == {"t0", "t1", "t2"}
    assert seen.points["t2"]["accuracy"] == [(40, 0.54), (80, 0.58)]
    assert later.trouble is None


def test_a_store_that_says_nothing_is_waited_for_as_long_as_asked(open_tracker, monkeypatch):
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


def test_what_mlflow_refuses_is_left_out_and_the_rest_goes_on(open_tracker, store_uri, study_dir, caplog):
    tracker = open_tracker()
    tracker.trial_started("t0", {"rank": 4}, HYPERPARAMETERS)
    tracker.adapter_logged("t0", study_dir / "no such folder")
    tracker.trial_reported(report("t0", 40, 0.5))
    tracker.trial_finished("t0", TrialState.COMPLETE)
    assert tracker.flush()
    seen = look(store_uri)
    assert seen.children["t0"].data.params["rank"] == "4"
    assert seen.points["t0"]["accuracy"] == [(40, 0.5)]
    assert seen.children["t0"].info.status == "FINISHED"
    assert caplog.text.count("refuses an event") == 1


def test_of_two_searches_that_insert_one_row_the_refused_one_loses_nothing(open_tracker, store_uri, monkeypatch):
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
    (parent,) = look(store_uri).parents
    assert parent.data.params


def test_runs_of_a_deleted_experiment_wait_until_it_is_restored(open_tracker, study_dir, store_uri, caplog):
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
    assert set(look(store_uri).children) == {"t0", "t1", "t2"}
    client.delete_experiment(experiment)  # while a search is at work
    record(tracker)
    assert not tracker.close(timeout=0.2)
    assert "refuses" not in caplog.text


def test_trials_are_told_at_once_and_again_of_what_fails(open_tracker, mlflow_server, adapter_folder, monkeypatch):
    send, log, together = MlflowClient.log_batch, MlflowClient.log_model_artifacts, threading.Barrier(2)
    met, lost = threading.Event(), iter(range(1))

    def meeting(client: MlflowClient, run_id: str, *batch: Any, **options: Any) -> None:
        if client.get_run(run_id).data.tags["loraxs.kind"] == "trial" and not met.is_set():
            together.wait(timeout=60)
            met.set()
        send(client, run_id, *batch, **options)

    def failing(client: MlflowClient, *where: str) -> None:
        log(client, *where)
        if next(lost, None) is not None:
            raise MlflowException("the answer was lost")

    monkeypatch.setattr(MlflowClient, "log_batch", meeting)
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", failing)
    early = open_tracker(AWAY)
    record(early)
    for trial in ("t0", "t1", "t2"):
        early.adapter_logged(trial, adapter_folder)
    early.close(timeout=0.1)
    assert open_tracker(mlflow_server.uri).flush(timeout=120)
    assert met.is_set()
    assert next(lost, None) is None
    seen = look(mlflow_server.uri)
    assert {trial: points["accuracy"] for trial, points in seen.points.items()} == {
        f"t{number}": [(40, 0.54), (80, 0.58)] for number in range(3)
    }
    assert sorted(model.tags["trial_id"] for model in seen.models) == ["t0", "t1", "t2"]
    assert all(model.status == LoggedModelStatus.READY for model in seen.models)
