from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from loraxs_search.errors import HomeError, TrackingError
from loraxs_search.tracking import ensure_store, run_ui, ui_command
from loraxs_search.tracking.store import connect


def test_an_existing_store_is_left_alone(store_uri, fresh_home):
    before = (fresh_home / "mlflow.db").stat().st_mtime_ns
    ensure_store(store_uri)
    assert (fresh_home / "mlflow.db").stat().st_mtime_ns == before


def test_a_home_that_is_no_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="must be writable"):
        ensure_store(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")


def test_the_ui_serves_the_embedded_store_with_its_artifacts(store_uri, fresh_home):
    command = ui_command(store_uri, port=5001)
    assert command[1:4] == ["-m", "mlflow", "server"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--backend-store-uri"] == store_uri
    assert options["--artifacts-destination"] == str(fresh_home / "artifacts")
    assert options["--port"] == "5001"


def test_a_server_serves_its_own_ui():
    with pytest.raises(TrackingError, match="UI of its own") as refused:
        ui_command("http://user:secret@mlflow.example:5000")
    assert refused.value.hint == "open http://***@mlflow.example:5000 in a browser"


def test_a_taken_port_is_said_before_anything_starts(store_uri):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(TrackingError, match="must be free"):
            run_ui(store_uri, port=taken.getsockname()[1])


def test_the_environment_of_the_user_stays(store_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    connect(store_uri)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert not list(Path.cwd().iterdir())
