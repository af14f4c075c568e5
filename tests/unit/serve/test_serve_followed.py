"""Names follow their champions whatever is wrong with one of them, and what was wrong may be mended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest
import requests
from mlflow import MlflowClient

from loraxs_search.errors import HomeError, IntegrityError, TrackingError
from loraxs_search.predictor import Predictor
from loraxs_search.registry.store import Registry
from loraxs_search.serve import served_models
from loraxs_search.serve.bodies import ClassifyBody, Limits
from loraxs_search.serve.engine import ServingEngine
from loraxs_search.serve.served_models import ServedModels


@pytest.fixture
def follow(registry, monkeypatch):
    """Make a server's names, which look at each name again at every refresh."""
    monkeypatch.setattr(served_models, "store_stamp", lambda _: None)
    return lambda *names: ServedModels(names, uri=registry[0])


def test_what_was_refused_is_taken_once_it_is_mended(registry, folders, follow, monkeypatch):
    _, promote = registry
    old = promote(folders["three"])
    models = follow("task-3")
    new = promote(folders["three"])

    def refuse(*_, **__):
        raise IntegrityError("A file was changed.")

    with monkeypatch.context() as patch:
        patch.setattr(served_models, "pull_version", refuse)
        models.refresh()
    assert models.faults() == {"task-3": "A file was changed."}
    models.refresh()
    assert models.find("task-3").digest == old, "it is not looked at every second"
    models._names["task-3"].retry_at = 0.0  # a minute later
    models.refresh()
    assert (models.find("task-3").digest, models.faults()) == (new, {})


def test_a_version_that_cannot_be_resolved_is_not_held_against_an_earlier_one(registry, folders, follow, monkeypatch):
    uri, promote = registry
    promote(folders["number"])
    models = follow("task-1")
    second = promote(folders["number"])
    models.refresh()
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    version = client.get_model_version_by_alias("task-1", "champion").version
    foreign = client.create_model_version("task-1", "file:///nowhere").version  # as people do in MLflow's UI
    client.set_registered_model_alias("task-1", "champion", foreign)
    models.refresh()
    assert models.faults()
    client.set_registered_model_alias("task-1", "champion", version)
    third = promote(folders["number"])
    models.refresh()
    assert models.find("task-1").digest == third
    client.set_registered_model_alias("task-1", "champion", version)
    models.refresh()
    assert (models.find("task-1").digest, models.faults()) == (second, {})
    client.delete_model_version("task-1", foreign)

    def away(*_):
        raise TrackingError("It does not answer.")

    promote(folders["number"])
    models.refresh()
    monkeypatch.setattr(Registry, "states", away)  # it is no fault of a name that has moved
    models.refresh()
    assert (models.registry_error, models.faults()) == ("It does not answer.", {})


@pytest.mark.parametrize(
    "fault", [TrackingError("One file cannot be read."), HomeError("A full disk."), OSError("odd")]
)
def test_files_of_one_adapter_that_cannot_be_had_hold_nobody_up(registry, folders, follow, monkeypatch, fault):
    """What passes by itself is tried again at once."""
    _, promote = registry
    promote(folders["two"]), promote(folders["three"])
    models, pull = follow("task-2", "task-3"), served_models.pull_version

    def broken(name, **options):
        if name == "task-2":
            raise fault
        return pull(name, **options)

    promote(folders["two-again"])
    new = promote(folders["three"])
    monkeypatch.setattr(served_models, "pull_version", broken)
    models.refresh()
    assert models.find("task-3").digest == new
    assert list(models.faults()) == ["task-2"]
    assert models.registry_error is None
    monkeypatch.setattr(served_models, "pull_version", pull)
    models.refresh()
    assert models.faults() == {}


def test_a_late_request_is_answered_by_the_adapter_it_named_and_that_one_does_not_stay(registry, folders, follow):
    _, promote = registry
    promote(folders["two"])
    models = follow("task-2")
    engine = ServingEngine(models.bank, models.load)

    async def ask():
        (job,) = ClassifyBody(model="task-2", input="x").jobs(models.find("task-2"), Limits())
        promote(folders["two-again"])
        models.refresh()
        engine.start()
        engine.submit([job])
        return await job.result

    (answer,) = asyncio.run(ask()).predictions
    expected = Predictor(folders["two"])(["x"])[0]  # not the new champion's
    assert (answer.label, answer.score) == (expected.label, pytest.approx(expected.score, abs=1e-5))
    engine.close()
    assert len(models.bank) == 2
    models.refresh()
    assert models.bank.names == [models.find("task-2").digest]


# ---- the end ---------------------------------------------------------------------------------------------------------
SERVES = """
import sys
from loraxs_search.cli import serve
from loraxs_search.cli._main import run

serve._END_AFTER_S = 1
sys.exit(run(sys.argv[1:]))
"""


def test_a_client_that_sends_half_a_body_does_not_hold_up_the_end(registry, encoder):
    command = [sys.executable, "-c", SERVES, "serve", "task-2", "--port", "0", "--tracking-uri", registry[0]]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        said = ""
        while " at http" not in said:
            said = process.stderr.readline()
            assert said
        port = int(said.rstrip().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            while requests.get(f"http://127.0.0.1:{port}/health", timeout=60).status_code != 200:
                continue
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)
    assert process.returncode == 0
