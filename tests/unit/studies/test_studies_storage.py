"""Objects of a folder are made whole, one of many at once; without hard links they are still made once."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loraxs_search.errors import StorageError, StudyError
from loraxs_search.studies.lease import Lease
from loraxs_search.studies.storage import Storage


@pytest.fixture
def folder(tmp_path, machine):
    machine("one")
    (tmp_path / "shared").mkdir()
    return Storage(str(tmp_path / "shared"))


@pytest.fixture(params=["hard links", "no hard links"])
def either(request, folder, monkeypatch):
    """The folder on a file system with hard links, and on one without."""
    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", refused)
    return folder


def refused(*_: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_a_folder_is_known_by_its_whole_path(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    assert Storage("shared").uri == folder.uri
    assert Storage("link").uri == str(tmp_path / "link"), "where the link leads may change"


def test_an_object_is_not_there_before_it_is_whole(folder, monkeypatch):
    seen: list[bytes | None] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(folder.get("s/lease/1.json")))
    assert folder.create("s/lease/1.json", b"whole")
    assert seen[0] is None
    assert folder.get("s/lease/1.json") == b"whole"


def test_of_an_object_that_cannot_be_written_nothing_is_left(folder, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            folder.create("s/a", b"whole")
    assert list((Path(folder.uri) / "s").iterdir()) == []
    assert folder.create("s/a", b"whole")


def test_of_many_at_once_one_makes_it(either):
    with ThreadPoolExecutor(8) as callers:
        versions = list(callers.map(lambda n: either.create("s/a", f"of {n}".encode()), range(8)))
    (winner,) = (n for n, version in enumerate(versions) if version is not None)
    assert either.get("s/a") == f"of {winner}".encode()
    assert either.versions("s") == {"s/a": versions[winner]}
    assert [path.name for path in (Path(either.uri) / "s").iterdir()] == ["a"]


def test_a_lease_that_is_seen_empty_is_another_drivers(folder, make_clock):
    """As where another driver is about to write it, on a file system without hard links."""
    held = Lease(folder, "s", make_clock())
    held.take()
    folder.create("s/lease/00000002.json", b"")
    with pytest.raises(StudyError, match="one driver at a time, but another one took over"):
        held.renew()
    folder.delete("s/lease/00000001.json")
    folder.delete("s/lease/00000002.json")
    with pytest.raises(StudyError, match="the lease was removed"):
        held.renew()
