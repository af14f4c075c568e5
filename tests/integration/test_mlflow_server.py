"""A real MLflow server: promoters that meet, runs and adapters, kill -9 at bad moments; and what two make at once."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import requests
import torch
from mlflow import MlflowClient
from mlflow.exceptions import RestException
from support.servers import MlflowServer, Server, responds
from support.shell import free_port, until
from support.toys import HYPERPARAMETERS, TASK, adapter, candidate
from support.toys import promote as promote_folder
from support.tracked import Tracked

import loraxs_search
from loraxs_search.base_model.locate import locate
from loraxs_search.errors import RegistryError, TrackingError
from loraxs_search.factors.store import FactorStore
from loraxs_search.manifest import folder_digest, verify
from loraxs_search.mlflow_uri import ensure_experiment
from loraxs_search.records.codec import to_json
from loraxs_search.records.search import Decision, PromotionRule, SearchPlan
from loraxs_search.records.task import BaseModelRef
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialState
from loraxs_search.registry import changes
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.factor_sets import factors_at
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import DECISIONS, Registry
from loraxs_search.tracking.store import connect, ensure_store

pytestmark = pytest.mark.slow


def promote(uri: str, trial_id: str, score: float, made: Path, name: str = TASK.name) -> int | None:
    """Offer an adapter to a task; return the version that it becomes, None if it is refused."""
    task, won = replace(TASK, name=name), replace(candidate(trial_id, score), task=name)
    rule = PromotionRule(confidence=0, require="constant")
    return Promoter(uri, name).promote(rule, task, [won], {trial_id: made})[1]


def lease_of(client: MlflowClient, task: str) -> tuple[str, str]:
    """Make the run of a task, which holds its lease; returns its id and the lease's tag."""
    experiment = ensure_experiment(client, "", "loraxs-search decisions")
    return client.create_run(experiment, tags={"loraxs.task": task}).info.run_id, changes.LEASE


@pytest.mark.parametrize("days_ahead", [9, -9])
def test_a_lease_is_waited_for_taken_over_and_noticed_when_lost(mlflow_server, monkeypatch, days_ahead):
    """Whatever the clock says of whoever held it before."""
    client, name = connect(mlflow_server.uri), f"leased-{days_ahead}"
    (run, tag), record = lease_of(client, name), Promoter(mlflow_server.uri, name)

    def hold(owner: str) -> None:
        client.set_tag(run, tag, f"{owner} {time.time() + days_ahead * 86400}")

    hold("a promoter that died")
    with pytest.raises(RegistryError, match="but a promoter that died holds it"), record.locked(wait_s=0.0):
        pass
    monkeypatch.setattr(changes, "TTL_S", 1.0)
    began = time.monotonic()
    with record.locked() as check:
        assert time.monotonic() - began > changes.TTL_S
        check()
        hold("another")
        with pytest.raises(RegistryError, match="but another holds it"):
            check()
    assert "another" in client.get_run(run).data.tags[tag], "it is not ours to give back"


def test_of_two_that_write_a_first_lease_at_once_the_refused_one_waits(mlflow_server, monkeypatch):
    """The server's database lets one of two insert a tag and answers the other that it is there."""
    name = "leased-at-once"
    record = Promoter(mlflow_server.uri, name)
    client = record.registry.client
    run, tag = lease_of(client, name)
    write, refusal = client.set_tag, RestException({"error_code": "BAD_REQUEST", "message": "UNIQUE"})

    def write_second(run: str, key: str, lease: str) -> None:
        monkeypatch.setattr(client, "set_tag", write)
        write(run, key, f"the first {time.time()}")
        raise refusal

    monkeypatch.setattr(client, "set_tag", write_second)
    with pytest.raises(RegistryError, match="but the first holds it"), record.locked(wait_s=0.0):
        pass
    client.delete_tag(run, tag)

    def write_nothing(run: str, key: str, lease: str) -> None:
        raise refusal

    monkeypatch.setattr(client, "set_tag", write_nothing)
    with pytest.raises(RestException, match="UNIQUE"), record.locked():
        pass


def test_two_runs_of_a_task_have_one_lease_and_all_decisions(mlflow_server):
    """Two that made the task's run at once."""
    client, name = connect(mlflow_server.uri), "made-twice"
    runs = sorted(lease_of(client, name)[0] for _ in range(2))
    record = Promoter(mlflow_server.uri, name)
    for number, run in enumerate(runs, 1):
        decided = Decision(name, "s", False, "t", 0.5, None, "accuracy", (), number=number)
        client.set_tag(run, f"{DECISIONS}{number}", to_json(decided))
    with record.locked():
        assert changes.LEASE in client.get_run(runs[0]).data.tags
        assert [decision.number for decision in record.registry.decisions(name)] == [1, 2]


LIGHT = """
import os, sys
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
print(pull("cached", uri=sys.argv[1]))
assert "cached" in [found.task for found in Registry(sys.argv[1]).summaries()]
assert "mlflow" not in sys.modules and "numpy" not in sys.modules
os.environ["LORAXS_HOME"] = sys.argv[2]
pull("with-factors", uri=sys.argv[1])
assert "mlflow" not in sys.modules
"""


def test_pulling_and_listing_load_no_mlflow(mlflow_server, tmp_path, monkeypatch):
    """Factors that a home lacks come from the server, too."""
    uri = mlflow_server.uri
    key, checksum = FactorStore().identify(torch.randn(12, 10, generator=torch.Generator().manual_seed(3)), rank=4)
    for name, factors in {"cached": {}, "with-factors": {key: checksum}}.items():
        made = adapter(tmp_path / name, "t0", task=replace(TASK, name=name), factors=factors)
        assert promote(uri, "t0", 0.8, made, name) == 1
    pulled = pull("cached", uri=uri)
    command = [sys.executable, "-c", LIGHT, uri, str(tmp_path / "elsewhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(pulled)
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "elsewhere"))
    assert factors_at(key, checksum, unchecked=True)
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "another"))
    assert not factors_at(key, checksum, unchecked=True)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "any")  # what plain requests do not know: MLflow's client asks
    pull("with-factors", uri=uri)
    assert factors_at(key, checksum, unchecked=True)


# ---- a server that dies ----------------------------------------------------------------------------------------------
def test_a_server_killed_in_the_middle_and_started_again_lacks_and_doubles_nothing(mlflow_server, tmp_path, caplog):
    """While it is away, what was pulled before is there."""
    server, uri, task = mlflow_server, mlflow_server.uri, "toy"
    ensure_store(uri)
    made = {trial_id: adapter(tmp_path / trial_id, trial_id) for trial_id in ("t0", "t1", "t2")}
    scores = {"t0": 0.8, "t1": 0.7, "t2": 0.9}
    assert [promote(uri, trial_id, score, made[trial_id]) for trial_id, score in scores.items()] == [1, None, 2]
    assert [past.promoted for past in Registry(uri).history(task)] == [True, False, True]
    pulled = pull(task, uri=uri)
    assert pulled.name == folder_digest(made["t2"])
    assert [verify(path).trial_id for path in (pulled, pull(f"{task}:1", uri=uri))] == ["t2", "t0"]

    tracker = Tracked("s1", tmp_path / "study", uri, "killed")

    def report(trial_id: str, *steps: int) -> None:
        for step in steps:
            size = AdapterSize(16, 10, 400)
            tracker.trial_reported(TrialReport(trial_id, step, {"accuracy": step / 1000}, 0.5, 1.0, 100, size))

    def trial(trial_id: str) -> None:
        tracker.trial_started(trial_id, {"rank": 4}, HYPERPARAMETERS)
        report(trial_id, 40, 80)
        tracker.trial_finished(trial_id, TrialState.COMPLETE, "ran all steps", 2.0)

    tracker.search_started("task: {}\n", SearchPlan())
    tracker.trial_started("long", {"rank": 4}, HYPERPARAMETERS)
    report("long", 40)
    trial("before")
    assert tracker.flush(60)
    server.kill()
    report("long", 80)
    trial("during")
    assert not tracker.flush(3)
    assert tracker.trouble is not None
    with caplog.at_level(logging.WARNING):
        assert pull(task, uri=uri) == pulled
    assert "using the cached toy" in caplog.text
    with pytest.raises(TrackingError):
        pull(f"{task}:2", uri=uri)

    server.start()
    report("long", 120)
    trial("after")
    tracker.search_finished("FINISHED", {"best": 0.1})
    assert tracker.close(60)
    client, points = connect(uri), dict[str, list[list[int]]]()
    experiment_id = client.get_experiment_by_name("killed").experiment_id
    for run in client.search_runs([experiment_id], "tags.`loraxs.kind` = 'trial'"):
        histories = [client.get_metric_history(run.info.run_id, key) for key in ("accuracy", "wall_s")]
        assert run.data.tags["trial_id"] not in points
        points[run.data.tags["trial_id"]] = [sorted(point.step for point in history) for history in histories]
    ended = [[40, 80], [0]]
    assert points == {"long": [[40, 80, 120], []], "before": ended, "during": ended, "after": ended}


def test_the_ui_serves_the_embedded_store_until_interrupted(store_uri, tmp_path):
    server, code = MlflowServer(tmp_path), "import sys; from loraxs_search.tracking.store import run_ui; "
    code += "sys.exit(run_ui(sys.argv[1], port=int(sys.argv[2])))"
    command = [sys.executable, "-c", code, store_uri, str(server.port)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}) as process:
        until(server.answers)
        assert [e.name for e in connect(server.uri).search_experiments()] == ["Default"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    assert not server.answers()


# ---- two that make the same at once get the one whole thing ----------------------------------------------------------
FACTORS = """
import sys, time
from pathlib import Path
import torch
from loraxs_search.factors.store import FactorStore
root, gate = Path(sys.argv[1]), Path(sys.argv[2])
weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
print("ready", flush=True)
while not gate.exists():
    time.sleep(0.001)
print(FactorStore(root).get(weight, rank=64).left.double().sum().item())
"""


def test_processes_that_compute_the_same_key_at_once_end_with_one_good_file(tmp_path):
    root, gate = tmp_path / "factors", tmp_path / "gate"
    command = [sys.executable, "-c", FACTORS, str(root), str(gate)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    gate.touch()
    (answer,) = {run.communicate(timeout=60)[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    (file,) = (path for path in root.rglob("*") if path.is_file())
    assert file.suffix == ".safetensors"
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    assert FactorStore(root).get(weight, rank=64).left.double().sum().item() == float(answer)


def test_two_at_once_create_one_store_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "new folder"
    with concurrent.futures.ThreadPoolExecutor() as threads:
        list(threads.map(ensure_store, [uri := f"sqlite:///{folder / 'mlflow.db'}"] * 2))
    assert [e.artifact_location for e in connect(uri).search_experiments()] == [str(folder / "artifacts" / "0")]
    assert sorted(p.name for p in folder.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    assert [*tmp_path.iterdir()] == [folder]  # nothing in the working directory


# ---- MLflow's own server ---------------------------------------------------------------------------------------------
@pytest.mark.long(part="faults")
def test_mlflows_own_server_answers_as_predict_does(mlflow_server, make_adapter, tiny_base, tmp_path, monkeypatch):
    base = locate(BaseModelRef(str(tiny_base)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    task = promote_folder(make_adapter(tmp_path / "a", base, rank=2), mlflow_server.uri)
    texts = ["a moving, funny film", "so so"]
    expected = [{"label": it.label, "score": it.score} for it in loraxs_search.predict(task, texts)]
    port = free_port()

    def close(answer: str) -> bool:
        found = [{name: row[name] for name in ("label", "score")} for row in json.loads(answer)["predictions"]]
        return found == [{**row, "score": pytest.approx(row["score"], abs=1e-5)} for row in expected]

    table = {"columns": ["id", "text"], "data": [[number, text] for number, text in enumerate(texts)]}

    def invoke(body: object) -> requests.Response:
        return requests.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=60)

    serve = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{task}@champion"]
    serve += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it starts `uvicorn` by its name
    with Server(serve, tmp_path / "log", lambda: responds(f"http://127.0.0.1:{port}/ping"), {"PATH": path}):
        records = [{"text": text} for text in texts]
        forms = [{"dataframe_split": table}, {"dataframe_records": records}, {"inputs": texts}, {"inputs": records}]
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            replies = list(threads.map(invoke, 4 * [*forms, {"inputs": {"text": texts}}]))
        assert all(reply.ok and close(reply.text) for reply in replies), [reply.text for reply in replies]
        refused = invoke({"dataframe_split": {"columns": ["text"], "data": [["fine"], [None]]}})
        assert (refused.status_code, "must be given one text per row" in refused.text) == (400, True)
        assert invoke({"dataframe_split": {"columns": ["words"], "data": [["fine"]]}}).status_code == 400
