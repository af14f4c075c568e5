"""The registry on a real MLflow server: promoters that meet, leases whose owners died, accounts."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from mlflow import MlflowClient
from mlflow.exceptions import RestException
from support.ports import free_port
from support.sealed import promote as promote_folder
from support.servers import Server
from support.toys import TASK, adapter, candidate

import loraxs_search
from loraxs_search.base_model.locate import locate
from loraxs_search.errors import RegistryError
from loraxs_search.factors.store import FactorStore
from loraxs_search.mlflow_uri import ensure_experiment
from loraxs_search.records.codec import to_json
from loraxs_search.records.search import Decision, PromotionRule
from loraxs_search.records.task import BaseModelRef
from loraxs_search.registry import changes
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.factor_sets import factors_at
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import DECISIONS
from loraxs_search.tracking.store import connect

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]


def promote(uri: str, name: str, folder: Path, **changes: Any) -> None:
    """Promote an adapter as the first of a task."""
    task = replace(TASK, name=name)
    made = adapter(folder, "t0", task=task, **changes)
    won = replace(candidate("t0", 0.8), task=name)
    assert (
        Promoter(uri, name).promote(PromotionRule(confidence=0, require="constant"), task, [won], {"t0": made})[1] == 1
    )


def lease_of(client: MlflowClient, task: str) -> tuple[str, str]:
    """Make the run of a task, which holds its lease; returns its id and the lease's tag."""
    experiment = ensure_experiment(client, "", "loraxs-search decisions")
    return client.create_run(experiment, tags={"loraxs.task": task}).info.run_id, changes.LEASE


@pytest.mark.parametrize("days_ahead", [9, -9])
def test_a_lease_is_waited_for_taken_over_and_noticed_when_lost(mlflow_server, monkeypatch, days_ahead):
    """Whatever the clock says of whoever held it before."""
    monkeypatch.setattr(changes, "TTL_S", 1.0)
    client, name = connect(mlflow_server.uri), f"leased-{days_ahead}"
    (run, tag), record = lease_of(client, name), Promoter(mlflow_server.uri, name)

    def hold(owner: str) -> None:
        client.set_tag(run, tag, f"{owner} {time.time() + days_ahead * 86400}")

    hold("a promoter that died")
    with pytest.raises(RegistryError, match="but a promoter that died holds it"), record.locked(wait_s=0.0):
        pass
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


def test_pulling_and_listing_load_no_mlflow(mlflow_server, tmp_path, monkeypatch):
    """Factors that a home lacks come from the server, too."""
    key, checksum = FactorStore().identify(torch.randn(12, 10, generator=torch.Generator().manual_seed(3)), rank=4)
    promote(mlflow_server.uri, "cached", tmp_path / "t0")
    promote(mlflow_server.uri, "with-factors", tmp_path / "t1", factors={key: checksum})
    pulled = pull("cached", uri=mlflow_server.uri)
    code = "import os, sys\nfrom loraxs_search.registry.pull import pull\n"
    code += "from loraxs_search.registry.store import Registry\n"
    code += "print(pull('cached', uri=sys.argv[1]))\n"
    code += "assert 'cached' in [found.task for found in Registry(sys.argv[1]).summaries()]\n"
    code += "assert 'mlflow' not in sys.modules and 'numpy' not in sys.modules\n"
    code += "os.environ['LORAXS_HOME'] = sys.argv[2]; pull('with-factors', uri=sys.argv[1])\n"
    code += "assert 'mlflow' not in sys.modules"
    command = [sys.executable, "-c", code, mlflow_server.uri, str(tmp_path / "elsewhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(pulled)
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "elsewhere"))
    assert factors_at(key, checksum, unchecked=True)
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "another"))
    assert not factors_at(key, checksum, unchecked=True)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "any")  # what plain requests do not know: MLflow's client asks
    pull("with-factors", uri=mlflow_server.uri)
    assert factors_at(key, checksum, unchecked=True)


# ---- MLflow's own server ---------------------------------------------------------------------------------------------
@pytest.mark.long(part="faults")
def test_mlflows_own_server_answers_as_predict_does(mlflow_server, make_adapter, tiny_base, tmp_path, monkeypatch):
    base, query = locate(BaseModelRef(str(tiny_base))), ("bert.encoder.layer.0.attention.self.query",)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    task = promote_folder(make_adapter(tmp_path / "a", base, rank=2, target_modules=query), mlflow_server.uri)
    texts = ["a moving, funny film", "so so"]
    expected = [{"label": it.label, "score": it.score} for it in loraxs_search.predict(task, texts)]
    port = free_port()

    def close(answer: str) -> bool:
        found = [{name: row[name] for name in ("label", "score")} for row in json.loads(answer)["predictions"]]
        return found == [{**row, "score": pytest.approx(row["score"], abs=1e-5)} for row in expected]

    table = {"columns": ["id", "text"], "data": [[number, text] for number, text in enumerate(texts)]}

    def invoke(body: object) -> requests.Response:
        return requests.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=60)

    def answers() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok
        except OSError:
            return False

    serve = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{task}@champion"]
    serve += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it starts `uvicorn` by its name
    server = Server(serve, tmp_path / "log", answers, {"PATH": path})
    server.start()
    try:
        records = [{"text": text} for text in texts]
        forms = [{"dataframe_split": table}, {"dataframe_records": records}, {"inputs": texts}, {"inputs": records}]
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            replies = list(threads.map(invoke, 4 * [*forms, {"inputs": {"text": texts}}]))
        assert all(reply.ok and close(reply.text) for reply in replies), [reply.text for reply in replies]
        refused = invoke({"dataframe_split": {"columns": ["text"], "data": [["fine"], [None]]}})
        assert (refused.status_code, "must be given one text per row" in refused.text) == (400, True)
        assert invoke({"dataframe_split": {"columns": ["words"], "data": [["fine"]]}}).status_code == 400
    finally:
        server.kill()
