"""What every storage promises: a folder, S3 (moto, SeaweedFS), Azure (Azurite), and a stand-in for Google's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from loraxs_search.errors import StorageConflictError, StorageError, StudyError
from loraxs_search.studies.lease import LEASE_S, Lease
from loraxs_search.studies.storage import Storage


@pytest.fixture
def storage(each_storage):
    return each_storage


def test_a_storage_keeps_whole_objects(storage):
    assert storage.get("a/b") is None
    assert storage.keys("a") == []
    storage.write("a/b", b"two", storage.create("a/b", b"one"))
    storage.create("a/c/d", bytes(3_000_000))
    storage.create("other", b"")
    assert storage.get("a/b") == b"two"
    assert storage.keys("a") == ["a/b", "a/c/d"]
    assert len(storage.get("a/c/d") or b"") == 3_000_000
    storage.delete("a/b")
    storage.delete("a/b")
    assert storage.keys("a") == ["a/c/d"]


def test_what_another_has_written_is_not_replaced(storage):
    first = storage.create("a/b", b"one")
    assert first is not None
    assert storage.create("a/b", b"another") is None
    assert storage.get("a/b") == b"one"
    assert storage.versions("a") == {"a/b": first}
    second = storage.write("a/b", b"a second", first)
    assert storage.versions("a") == {"a/b": second}
    for version in (first, None):
        with pytest.raises(StorageConflictError):
            storage.write("a/b", b"late", version)
    storage.delete("a/b")
    with pytest.raises(StorageConflictError):
        storage.write("a/b", b"late", second)
    assert storage.get("a/b") is None
    assert storage.write("a/b", b"new", None)


ODD = "a folder, or s3://"
DROPPED = "must have no"  # by a bucket, or what it cannot name


@pytest.mark.parametrize(
    ("uri", "law"),
    [
        *((uri, ODD) for uri in ("", " ", "ftp://server/folder", "s3:///nothing", "gcs://b", "s3://me:secret@b/x")),
        *((uri, DROPPED) for uri in ("s3://b/team#1", "s3://b/team#", "az://b/x?sig=secret", "gs://b/../x")),
        *((uri, DROPPED) for uri in ("s3://b/./x", "s3://b/a\x01")),
        *((uri, "must be a folder") for uri in ("~nobody-of-this-name/x", "a\0b", "x" * 300)),
    ],
)
def test_an_address_that_leads_nowhere_is_refused(uri, law, fresh_home):
    with pytest.raises(StorageError, match=law) as caught:
        Storage(uri)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("endpoint", ["nonsense", "http://[host", "http://a host", "http://me:secret@host", "http://"])
def test_a_server_that_cannot_be_is_refused_before_it_is_asked(endpoint, monkeypatch):
    """By the client itself it is a panic, or an error with the password in it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL") as refused:
        Storage("s3://bucket/x")
    assert "secret" not in refused.value.message


def test_a_storage_is_seen_to_be_usable_before_a_search(storage, tmp_path, monkeypatch):
    storage.check()
    assert storage.keys("") == []
    for careless in ("create", "write"):
        with monkeypatch.context() as patch:  # a server that passes over conditions
            patch.setattr(Storage, careless, lambda *_: "version")
            with pytest.raises(StorageError, match="must refuse to replace what another driver has written"):
                storage.check()
    assert storage.keys("") == []
    scheme, _, _ = storage.uri.rpartition("://")
    missing = f"{scheme}://not-there/studies" if scheme else str(tmp_path / "not-there")
    with pytest.raises(StorageError, match=f"at {missing} must be"):
        Storage(missing).check()


def test_slashes_too_many_are_passed_over(storage):
    storage.create("below/b", b"")  # a folder is not made
    Storage(f"{storage.uri}//below//").create("a", b"one")
    assert storage.get("below/a") == b"one"


def test_a_server_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match="s3://bucket/x") as caught:
        Storage("s3://bucket/x").get("key")
    assert "AWS_ENDPOINT_URL" in str(caught.value.hint)


def test_of_many_at_once_one_makes_an_object_and_one_replaces_it(storage):
    with ThreadPoolExecutor(8) as callers:
        made = list(callers.map(lambda n: storage.create("a", f"of {n}".encode()), range(8)))
        (winner,) = (n for n, version in enumerate(made) if version is not None)
        assert storage.get("a") == f"of {winner}".encode()
        if "://" in storage.uri:  # in a folder a moment lies between comparing and replacing
            seen = made[winner]
            replaced = list(callers.map(lambda n: replace(storage, "a", n, seen), range(8)))
            (winner,) = (n for n, was_replaced in enumerate(replaced) if was_replaced)
            assert storage.get("a") == f"by {winner}".encode()


def replace(storage: Storage, key: str, number: int, seen: str | None) -> bool:
    try:
        storage.write(key, f"by {number}".encode(), seen)
    except StorageConflictError:
        return False
    return True


def test_a_lease_is_kept_while_it_beats_and_taken_over_when_it_does_not(storage, machine, make_clock):
    machine("one")
    first = Lease(storage, "s", make_clock())
    first.take()
    machine("two")
    clock = make_clock()
    clock.meanwhile = lambda: first.renew() if clock.slept_s == 20 else None
    with pytest.raises(StudyError, match="one on one"):
        Lease(storage, "s", clock).take()
    clock.meanwhile = lambda: None
    second, clock.slept_s = Lease(storage, "s", clock), 0.0
    second.take()
    assert clock.slept_s == LEASE_S
    with pytest.raises(StudyError, match="one on two"):
        first.renew()
    second.renew()


# ---- Azure -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def azure(monkeypatch):
    """An account whose server is not there."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "me")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:9/me")


def test_azures_account_is_named_where_there_is_none(monkeypatch):
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StorageError, match=r"must have an account, but: .*must be specified\.$") as caught:
        Storage("az://container/studies")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in str(caught.value.hint)


def test_an_azure_server_that_is_not_there_is_named(azure, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    with pytest.raises(StorageError, match="az://container/x") as caught:
        Storage("az://container/x").get("key")
    assert "AZURE_STORAGE_ENDPOINT" in str(caught.value.hint)


def test_a_signature_of_azures_is_not_shown(azure, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2021-08-06&sp=rw&sig=very%2Fsecret%3D")
    with pytest.raises(StorageError, match="az://container/x") as caught:
        Storage("az://container/x").get("key")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("name", ["AZURE_STORAGE_ENDPOINT", "AWS_ENDPOINT_URL"])
def test_what_is_no_server_is_refused(name, azure, monkeypatch):
    monkeypatch.setenv(name, "127.0.0.1:9")
    with pytest.raises(StorageError, match=f"{name} must be http"):
        Storage("az://container/x" if name.startswith("AZURE") else "s3://bucket/x")
