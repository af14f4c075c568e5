"""One driver at a time: judged by what is seen to change, on a clock that the tests move; what is late is kept out."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.studies import SlowStorage, within
from support.studies import mirrored_study as study

from loraxs_search.errors import StorageError, StudyError
from loraxs_search.log.clock import Clock
from loraxs_search.log.events import TrialEnded, TrialStarted
from loraxs_search.records.trial import TrialState
from loraxs_search.studies import lease
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.lease import LEASE_S, Lease
from loraxs_search.studies.mirror import Mirror, fetch
from loraxs_search.studies.storage import Storage

MakeClock = Callable[..., Any]
STARTED = TrialStarted(trial_id="00000", params={"rank": 4})


def ended(reason: str) -> TrialEnded:
    return TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason=reason)


# ---- taking and keeping ----------------------------------------------------------------------------------------------
def test_one_that_is_free_is_taken_without_a_wait(storage, machine, make_clock):
    for name in ("one", "two"):
        machine(name)
        with Lease(storage, "s", clock := make_clock()).held():
            pass
        assert clock.slept_s == 0
    for _ in range(2):  # a driver killed here is followed by the next one here
        first = Lease(storage, "s", clock := make_clock())
        first.take()
        assert clock.slept_s == 0
    machine("one")
    Lease(storage, "s", clock := make_clock(first.release)).take()
    assert clock.slept_s == 1, "it is let go while it is watched"


def test_of_two_who_take_it_at_the_same_moment_one_is_refused(storage, machine, make_clock, monkeypatch):
    machine("one")
    first, create = Lease(storage, "s", make_clock()), Storage.create
    machine("two")
    second = Lease(storage, "s", make_clock())

    def beaten(store: Storage, key: str, content: bytes) -> str | None:
        monkeypatch.setattr(Storage, "create", create)
        first.take()  # both have seen that it is free
        return create(store, key, content)

    monkeypatch.setattr(Storage, "create", beaten)
    with pytest.raises(StudyError, match="one on one"):
        second.take()
    first.renew()


def test_a_sign_of_life_that_was_written_and_reported_lost_counts(storage, machine, make_clock, monkeypatch):
    """A connection that broke after the server had written: the next try finds another version, of its own."""
    machine("one")
    lease, write = Lease(storage, "s", make_clock()), Storage.write
    lease.take()

    def unanswered(*given: Any) -> str:
        write(*given)
        raise StorageError("no answer came")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", unanswered)
        with pytest.raises(StorageError, match="no answer"):
            lease.renew()
    for _ in range(2):
        lease.renew()


def test_an_object_that_is_just_being_written_is_somebodys(storage, machine, make_clock):
    """As on a file system without hard links."""
    machine("two")
    storage.create("s/lease/00000007.json", b"")
    held = Lease(storage, "s", clock := make_clock())
    held.take()
    assert (clock.slept_s, storage.keys("s/lease")) == (LEASE_S, ["s/lease/00000008.json"])
    storage.create("s/lease/00000009.json", b"")
    with pytest.raises(StudyError, match="one driver at a time, but another one took over"):
        held.renew()
    for number in (8, 9):
        storage.delete(f"s/lease/{number:08d}.json")
    with pytest.raises(StudyError, match="the lease was removed"):
        held.renew()


def test_another_container_of_this_machine_is_another_place(storage, machine, make_clock, tmp_path):
    """Its state folder has the same path, and is another one: no lock of it keeps the two apart."""
    home = machine("one")
    first = Lease(storage, "s", make_clock())
    first.take()
    home.rename(tmp_path / "in the first container")
    with pytest.raises(StudyError, match="one on one"):
        Lease(storage, "s", make_clock(first.renew)).take()
    first.renew()


def test_time_goes_on_while_the_machine_is_suspended(monkeypatch):
    """As the monotonic clock of Linux does not."""
    monkeypatch.setattr("time.clock_gettime", {time.CLOCK_BOOTTIME: 50.0, time.CLOCK_MONOTONIC: 20.0}.__getitem__)
    assert Clock().now() == 50.0


def test_one_that_is_held_is_renewed(storage, machine, monkeypatch):
    """However long a study takes to be fetched or removed."""
    machine("one")
    monkeypatch.setattr(lease, "HEARTBEAT_EVERY_S", 0.02)
    slow = SlowStorage(storage.uri)
    with Lease(slow, "s").held():
        within(slow.beat)


def test_the_time_of_a_sign_of_life_counts_from_before_it_was_written(storage, machine, make_clock, monkeypatch):
    machine("one")
    own, write = Lease(storage, "s", clock := make_clock()), Storage.write
    own.take()

    def slow(*args: Any) -> str:
        clock.sleep(LEASE_S)
        return write(*args)

    monkeypatch.setattr(Storage, "write", slow)
    own.renew()
    assert not own.is_sure, "others have waited as long as they must"


# ---- a driver that was taken over ------------------------------------------------------------------------------------
def fetch_now(storage: Storage, make_clock: MakeClock) -> StudyFolder:
    """Fetch a study from a driver that shows no sign of life, without waiting for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loraxs_search.studies.lease.Clock", make_clock)
        return fetch("s", storage)


def test_who_was_taken_over_writes_no_more_and_what_was_under_way_is_replaced(
    storage, machine, make_clock, slow_threads
):
    """It slept, or was cut off, and does not know of it."""
    lost, key = threading.Event(), "s/journal.jsonl"
    first = study(machine("one"), storage)
    with Mirror(first, storage, lost.set, clock := make_clock()) as old:
        first.journal().append(STARTED)
        old.copy()
        machine("two")
        second = fetch_now(storage, make_clock)
        with Mirror(second, storage, pytest.fail, make_clock()) as new:
            storage.write(key, b"what was under way for a minute", storage.versions("s")[key])
            second.journal().append(ended("there"))
            new.copy()
            assert (there := storage.get(key)) == (second.path / "journal.jsonl").read_bytes()
            first.journal().append(ended("here"))
            first.write_adapter("00000", {"a": b"here"})  # which the other one lacks
            clock.time += 2  # what was seen a moment ago counts
            with pytest.raises(StudyError, match="one on two"):
                old.copy()
            assert (storage.get(key), storage.get("s/adapters/00000/a")) == (there, None)
    assert lost.is_set()
    assert storage.get(key) == there


def test_what_a_late_driver_put_in_place_of_something_old_does_not_stay(storage, machine, make_clock, slow_threads):
    """The one that took over has nothing to write there any more."""
    first = study(machine("one"), storage)
    with Mirror(first, storage, pytest.fail, make_clock()):
        key = "s/space.yaml"
        storage.write(key, b"late", storage.versions("s")[key])
    assert storage.get(key) == first.space_path.read_bytes()


def test_who_could_not_renew_for_half_a_minute_writes_nothing_until_it_can(
    storage, machine, make_clock, slow_threads, monkeypatch
):
    """Another driver may be at work by then."""
    monkeypatch.setattr(lease, "HEARTBEAT_EVERY_S", 0.02)
    clock, storage = make_clock(), SlowStorage(storage.uri)
    first = study(machine("one"), storage)
    with Mirror(first, storage, pytest.fail, clock) as kept:
        storage.beats.clear()
        clock.time += LEASE_S
        first.journal().append(STARTED)
        with pytest.raises(StorageError, match="30 s"):
            kept.copy()
        assert storage.get("s/journal.jsonl") is None
        storage.beats.set()
        for _ in range(2):  # the first may have begun before the clock went on
            storage.beat.clear()
            within(storage.beat)
        kept.copy()
        assert storage.get("s/journal.jsonl") is not None


def test_a_driver_that_works_on_is_told_that_it_was_taken_over(storage, machine, make_clock, quick_threads):
    lost = threading.Event()
    first = study(machine("one"), storage)
    with Mirror(first, storage, lost.set) as kept:
        storage.create("s/lease/00000002.json", json.dumps({"token": "theirs", "host": "two"}).encode())
        within(lost)
        first.journal().append(STARTED)
    assert "one on two took over" in str(kept.lost_to)
    assert storage.get("s/journal.jsonl") is None
    assert storage.keys("s/lease") == [f"s/lease/{number:08d}.json" for number in (1, 2)]
