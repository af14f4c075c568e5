from __future__ import annotations

import os
from pathlib import Path

import pytest

from loraxs_search.errors import HomeError
from loraxs_search.tracking.store import connect, ensure_store


def test_an_existing_store_is_left_alone(store_uri, fresh_home):
    before = (fresh_home / "mlflow.db").stat().st_mtime_ns
    ensure_store(store_uri)
    assert (fresh_home / "mlflow.db").stat().st_mtime_ns == before


def test_a_home_that_is_no_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="must be writable"):
        ensure_store(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")


def test_the_environment_of_the_user_stays(store_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    connect(store_uri)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert not list(Path.cwd().iterdir())
