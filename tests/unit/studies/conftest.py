from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loraxs_search.studies import Storage


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real server of the S3 protocol on this machine."""
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def storage_uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place of each kind."""
    if request.param == "folder":
        return str(tmp_path / "shared")
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_server"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    import boto3

    bucket = f"b{abs(hash(tmp_path))}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/studies of mine"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Be on another machine: another home, another name."""

    def enter(name: str) -> Path:
        home = tmp_path / name
        monkeypatch.setenv("LORAXS_HOME", str(home))
        monkeypatch.setattr("platform.node", lambda: name)
        return home

    return enter


@pytest.fixture
def storage(storage_uri: str) -> Storage:
    return Storage(storage_uri)
