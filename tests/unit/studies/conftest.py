from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loraxs_search.studies import Storage, lease, mirror
from loraxs_search.studies.clock import Clock


class HandClock(Clock):
    """A clock that moves only when somebody sleeps by it, or by hand.

    Args:
        meanwhile: What happens whenever somebody sleeps.
    """

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.time = 1000.0
        self.slept_s = 0.0
        self.meanwhile = meanwhile

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.slept_s += seconds
        self.meanwhile()


@pytest.fixture
def make_clock() -> Callable[..., HandClock]:
    return HandClock


@pytest.fixture(params=["folder", "s3"])
def storage_uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place of each kind."""
    if request.param == "folder":
        (tmp_path / "shared").mkdir()
        return str(tmp_path / "shared")
    bucket: str = request.getfixturevalue("s3_bucket")
    return f"{bucket}/studies of mine"


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


@pytest.fixture
def slow_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither copies nor signs of life but those that a test asks for."""
    monkeypatch.setattr(mirror, "MIRROR_EVERY_S", 10_000.0)
    monkeypatch.setattr(lease, "HEARTBEAT_EVERY_S", 10_000.0)


@pytest.fixture
def quick_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "MIRROR_EVERY_S", 0.02)
    monkeypatch.setattr(lease, "HEARTBEAT_EVERY_S", 0.02)
