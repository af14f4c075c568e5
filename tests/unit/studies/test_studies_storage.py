"""What every storage promises: a folder, S3 (moto, SeaweedFS), Azure (Azurite), and a stand-in for Google's."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loraxs_search.errors import StorageConflictError, StorageError, StudyError
from loraxs_search.studies.lease import LEASE_S, Lease
from loraxs_search.studies.storage import Storage

from .conftest import HandClock


# ---- all of them -----------------------------------------------------------------------------------------------------
def test_objects_are_whole_and_what_another_has_written_is_not_replaced(each_storage):
    storage = each_storage
    assert (storage.get("a/b"), storage.keys("a")) == (None, [])
    first = storage.create("a/b", b"one")
    assert storage.create("a/b", b"another") is None
    assert storage.versions("a") == {"a/b": first}
    second = storage.write("a/b", b"two", first)
    for version in (first, None):
        with pytest.raises(StorageConflictError):
            storage.write("a/b", b"late", version)
    assert (storage.get("a/b"), storage.versions("a")) == (b"two", {"a/b": second})
    storage.create("a/c/d", bytes(3_000_000))
    storage.create("other", b"")
    assert storage.keys("a") == ["a/b", "a/c/d"]
    assert len(storage.get("a/c/d") or b"") == 3_000_000
    for _ in range(2):
        storage.delete("a/b")
    with pytest.raises(StorageConflictError):
        storage.write("a/b", b"late", second)
    assert storage.keys("a") == ["a/c/d"]
    if "://" in storage.uri:
        Storage(f"{storage.uri}//below//").create("a", b"one")
        assert storage.get("below/a") == b"one", "slashes too many are passed over"


def test_of_many_at_once_one_makes_an_object(each_storage):
    with ThreadPoolExecutor(8) as callers:
        made = list(callers.map(lambda n: each_storage.create("a", f"of {n}".encode()), range(8)))
    (winner,) = (n for n, version in enumerate(made) if version is not None)
    assert (each_storage.get("a"), each_storage.versions("")) == (f"of {winner}".encode(), {"a": made[winner]})


def test_a_storage_is_seen_to_be_usable_before_a_search(each_storage, tmp_path, monkeypatch):
    each_storage.check()
    for careless in ("create", "write"):
        with monkeypatch.context() as patch:  # a server that passes over conditions
            patch.setattr(Storage, careless, lambda *_: "version")
            with pytest.raises(StorageError, match="must refuse to replace what another driver has written"):
                each_storage.check()
    assert each_storage.keys("") == []
    scheme, _, _ = each_storage.uri.rpartition("://")
    missing = f"{scheme}://not-there/studies" if scheme else str(tmp_path / "not-there")
    with pytest.raises(StorageError, match=f"at {missing} must be"):
        Storage(missing).check()


def test_a_lease_is_kept_while_it_beats_and_taken_over_when_it_does_not(each_storage, machine):
    machine("one")
    first = Lease(each_storage, "s", HandClock())
    first.take()
    machine("two")
    clock = HandClock()
    clock.meanwhile = lambda: first.renew() if clock.slept_s == 20 else None
    with pytest.raises(StudyError, match="one on one") as refused:
        Lease(each_storage, "s", clock).take()
    assert (clock.slept_s, "30 s" in str(refused.value.hint)) == (20, True)
    clock.meanwhile, clock.slept_s = lambda: None, 0.0
    second = Lease(each_storage, "s", clock)
    second.take()
    assert clock.slept_s == LEASE_S
    with pytest.raises(StudyError, match="one on two"):
        first.renew()
    first.release()
    second.renew()


# ---- addresses and accounts ------------------------------------------------------------------------------------------
ODD, DROPPED = "a folder, or s3://", "must have no"  # by a bucket, or what it cannot name


@pytest.mark.parametrize(
    ("uri", "law", "environment"),
    [
        *((uri, ODD, {}) for uri in (" ", "ftp://server/folder", "s3:///nothing", "s3://me:secret@b/x")),
        *((uri, DROPPED, {}) for uri in ("az://b/x?sig=secret", "gs://b/../x")),
        ("a\0b", "must be a folder", {}),
        # By the client itself it is a panic, or an error with the password in it.
        ("s3://bucket/x", "AWS_ENDPOINT_URL must be http", {"AWS_ENDPOINT_URL": "http://me:secret@host"}),
        ("az://b/x", "AZURE_STORAGE_ENDPOINT must be http", {"AZURE_STORAGE_ENDPOINT": "http://a host"}),
    ],
)
def test_an_address_that_leads_nowhere_is_refused(uri, law, environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=law) as caught:
        Storage(uri)
    assert "secret" not in caught.value.message


def test_a_server_that_is_not_there_is_named_and_its_account_is_not(monkeypatch):
    own = {"AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9/me", "AZURE_STORAGE_ACCOUNT_NAME": "me"}
    for name, value in (own | {"AZURE_STORAGE_SAS_TOKEN": "sv=2021-08-06&sig=very%2Fsecret%3D"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match="az://container/x") as caught:
        Storage("az://container/x").get("key")
    assert "AZURE_STORAGE_ENDPOINT" in str(caught.value.hint)
    assert "secret" not in caught.value.message
    for name in (*own, "AZURE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StorageError, match="must have an account", check=lambda it: "ACCOUNT_NAME" in it.hint):
        Storage("az://container/studies")


# ---- a folder --------------------------------------------------------------------------------------------------------
def test_a_folder_is_known_by_its_whole_path_and_is_not_that_of_the_studies(storage, machine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    assert Storage("shared").uri == storage.uri
    assert Storage("link").uri == str(tmp_path / "link"), "where the link leads may change"
    home = machine("one")
    (home / "studies").mkdir(parents=True)
    (tmp_path / "other").symlink_to(home)
    for uri in (str(home / "studies"), str(tmp_path / "other" / "studies")):  # a journal would be copied onto itself
        with pytest.raises(StorageError, match="must be another folder"):
            Storage(uri)


def test_a_folder_that_is_not_there_is_not_made(tmp_path, machine):
    """Where its share is not mounted, the copy would go to this machine's own disk."""
    machine("one")
    shared = tmp_path / "mount" / "studies"
    with pytest.raises(StorageError, match="folder", check=lambda it: f"mkdir -p {shared}" in it.hint):
        Storage(str(shared)).create("a", b"")
    assert not shared.parent.exists()
    shared.mkdir(parents=True)
    held = Lease(Storage(str(shared)), "s")
    held.take()
    shared.parent.rename(tmp_path / "away")
    with pytest.raises(StorageError):  # not that another has taken the lease: the search goes on
        held.renew()
    (tmp_path / "away").rename(shared.parent)
    held.renew()


def test_an_object_is_not_there_before_it_is_whole_and_nothing_is_left_of_a_fault(storage, monkeypatch):
    seen: list[bytes | None] = []

    def full(_: int) -> None:
        seen.append(storage.get("s/a"))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            storage.create("s/a", b"whole")
    assert (seen, list((Path(storage.uri) / "s").iterdir())) == ([None], [])
    (Path(storage.uri) / "s" / ".a.tmp").touch()  # of who was killed
    version = storage.create("s/a", b"whole")
    assert (storage.keys("s"), storage.versions("s")) == (["s/a"], {"s/a": version})


def test_without_hard_links_one_of_many_makes_an_object_and_a_copy_is_whole_or_not_there(storage, monkeypatch):
    def refused(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    with ThreadPoolExecutor(8) as callers:
        versions = list(callers.map(lambda n: storage.create("s/a", f"of {n}".encode()), range(8)))
    (winner,) = (n for n, version in enumerate(versions) if version is not None)
    assert (storage.get("s/a"), storage.versions("s")) == (f"of {winner}".encode(), {"s/a": versions[winner]})
    seen, replace = list[bytes | None](), os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append(storage.get("s/b")), replace(*paths)))
    storage.write("s/b", b"whole", None)
    assert (seen, storage.get("s/b")) == ([None], b"whole")


def test_a_file_that_another_machine_replaces_while_it_is_read_is_read_again(storage, monkeypatch):
    faults = [OSError(errno.ESTALE, "Stale file handle")]
    storage.create("a", b"content")
    read = Path.read_bytes

    def read_or_fail(path: Path) -> bytes:
        if faults:
            raise faults.pop()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_or_fail)
    assert storage.get("a") == b"content"
    faults += [OSError(errno.EIO, "Input/output error")]
    with pytest.raises(StorageError, match="Input/output error", check=lambda it: "mounted" in it.hint):
        storage.get("a")
