from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import servers

from loraxs_search.log.clock import Clock
from loraxs_search.studies.storage import Storage


class HandClock(Clock):
    """A clock that moves only when somebody sleeps by it, or by hand.

    Args:
        meanwhile: What happens whenever somebody sleeps.
    """

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.time, self.slept_s, self.meanwhile = 1000.0, 0.0, meanwhile

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.slept_s += seconds
        self.meanwhile()


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory):
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as variables:
        yield variables


@pytest.fixture(scope="session")
def azurite(tmp_path_factory):
    with servers.azurite(tmp_path_factory.mktemp("azurite")) as variables:
        yield variables


@pytest.fixture(scope="session")
def google():
    with servers.google() as variables:
        yield variables


LONG = [pytest.param(kind, marks=pytest.mark.long(part="storage")) for kind in ("seaweedfs", "google", "azurite")]


@pytest.fixture(params=["folder", "moto", *LONG])
def each_storage(request, tmp_path, monkeypatch):
    """An empty place of each kind, a folder and one that speaks S3 in every run."""
    if request.param == "folder":
        (tmp_path / "shared").mkdir()
        return Storage(str(tmp_path / "shared"))
    if request.param == "moto":
        return Storage(f"{request.getfixturevalue('s3_bucket')}/studies of mine")
    for name, value in request.getfixturevalue(request.param).items():
        monkeypatch.setenv(name, value)
    scheme = {"azurite": "az", "google": "gs"}.get(request.param, "s3")
    return Storage(f"{scheme}://{servers.BUCKET}/{tmp_path.name}/studies of mine")


@pytest.fixture
def storage(tmp_path):
    """An empty folder that machines share; what all storages promise is tested of each."""
    (tmp_path / "shared").mkdir()
    return Storage(str(tmp_path / "shared"))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Be on another machine: another home, another name."""

    def enter(name: str) -> Path:
        home = tmp_path / name
        monkeypatch.setenv("LORAXS_HOME", str(home))
        monkeypatch.setattr("platform.node", lambda: name)
        return home

    return enter
