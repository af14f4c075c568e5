from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loraxs_search.studies import Storage


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
