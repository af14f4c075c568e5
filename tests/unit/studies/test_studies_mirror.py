"""A study's copy: kept up, taken up elsewhere, by one driver at a time; slow copies and late drivers.

Who holds a study is judged by what is seen to change, on a clock that the tests move.
"""

from __future__ import annotations

import errno
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.studies import SlowStorage, state, within
from support.studies import mirrored_study as study
from support.toys import report

from loraxs_search.errors import StorageError, StudyError
from loraxs_search.log.clock import Clock
from loraxs_search.log.events import TrainingEnded, TrialEnded, TrialReported, TrialStarted
from loraxs_search.records.search import Baseline
from loraxs_search.records.trial import TrialState
from loraxs_search.studies import lease, mirror
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.lease import LEASE_S, Lease
from loraxs_search.studies.mirror import PATIENCE_S, Mirror, fetch
from loraxs_search.studies.storage import Storage

from .conftest import HandClock

STARTED = TrialStarted(trial_id="00000", params={"rank": 4})
DONE = TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason="done")


@pytest.fixture(autouse=True)
def _quick_threads(monkeypatch):
    monkeypatch.setattr(mirror, "MIRROR_EVERY_S", 0.02)
    monkeypatch.setattr(lease, "HEARTBEAT_EVERY_S", 0.02)


@pytest.fixture
def slow_threads(monkeypatch):
    """Neither copies nor signs of life but those that a test asks for."""
    monkeypatch.setattr(mirror, "MIRROR_EVERY_S", 10_000.0)
    monkeypatch.setattr(lease, "HEARTBEAT_EVERY_S", 10_000.0)


@pytest.fixture
def storage(storage):
    """One that a test can hold back."""
    return SlowStorage(storage.uri)


@pytest.fixture
def first(storage, machine):
    """The study on the machine where it begins."""
    return study(machine("one"), storage)


@pytest.fixture
def second(first, storage, machine):
    """The study on another machine, which goes on with it."""
    with Mirror(first, storage, pytest.fail):
        begin(first, 2)
    machine("two")
    return fetch("s", storage)


def begin(folder: StudyFolder, *steps: int) -> None:
    journal = folder.journal()
    journal.append(STARTED)
    for step in steps:
        folder.snapshots.write("00000", state("00000", f"{step}"))
        journal.append(TrialReported(report=report("00000", step, 0.5)))


def test_another_machine_goes_on_with_what_was_written(each_storage, machine):
    storage = each_storage
    first = study(machine("one"), storage)
    (first.path / "mlflow.offset").write_text("17")
    (first.path / "space.json").write_text("{}")
    with Mirror(first, storage, pytest.fail):
        begin(first, 2, 4)
        (first.path / "adapters" / "00000").mkdir(parents=True)
        (first.path / "adapters" / "00000" / "manifest.json").write_text("{}")
        first.write_baselines([Baseline("constant", {"accuracy": 0.5}, answer=0)])
    # States are copied before the journal; a trial that it lacks yet gets its number here with other params.
    storage.write("s/snapshots/00001.safetensors", b"state of another", None)
    home = machine("two")
    second = fetch("s", storage)
    assert second.path == home / "studies" / "s"
    assert second.journal().records == first.journal().records
    assert (second.snapshots.read("00000"), second.snapshots.read("00001")) == (state("00000", "4"), None)
    assert second.space_path.read_text() == "task: sst2\n"
    assert (second.path / "space.json").read_text() == "{}"
    assert second.baselines() == first.baselines()
    assert (second.path / "adapters" / "00000" / "manifest.json").exists()
    assert second.info.storage == storage.uri
    assert second.info.tracking_uri == f"sqlite:///{home}/mlflow.db", "the first machine's database is not here"
    assert not (second.path / "mlflow.offset").exists(), "so all is recorded anew"


def test_a_fetch_that_is_cut_short_leaves_no_offset_of_another_store(first, second, storage, machine, monkeypatch):
    """With the journal here nothing is fetched again, and MLflow here would lack what it speaks of."""
    (first.path / "mlflow.offset").write_text("17")
    with Mirror(second, storage, pytest.fail):
        second.journal().append(DONE)
        (second.path / "mlflow.offset").write_text(str(second.journal_path.stat().st_size))
    machine("one")
    write = mirror.write_atomic
    with monkeypatch.context() as patch:

        def dying(path: Path, content: bytes | str) -> None:
            if path.name == "study.json":
                raise OSError(errno.EIO, "killed")
            write(path, content)

        patch.setattr(mirror, "write_atomic", dying)
        with pytest.raises(OSError, match="killed"):
            fetch("s", storage)
    assert fetch("s", storage).journal().records["00000"].state is TrialState.COMPLETE
    assert not (first.path / "mlflow.offset").exists()


def test_the_copy_follows_while_the_driver_works_and_back_again(first, storage, machine):
    with Mirror(first, storage, pytest.fail):
        storage.gate.clear()
        begin(first, 2)
        within(storage.held)
        storage.gate.set()
    machine("two")
    second = fetch("s", storage)
    with Mirror(second, storage, pytest.fail):
        second.journal().append(DONE)
        second.write_candidates([])
    machine("one")
    behind = Mirror(StudyFolder.open("s"), storage, pytest.fail)
    with pytest.raises(StudyError, match="another driver continued"), behind:
        pass
    again = fetch("s", storage)
    assert again.journal().records["00000"].state is TrialState.COMPLETE
    assert again.candidates() == []


def test_a_study_whose_driver_died_before_its_first_copy_goes_on_here(first, storage, machine):
    """Or was refused by the storage: there is nothing of it there, and all of it here."""
    assert fetch("s", storage).info == first.info
    Lease(storage, "s").take()
    assert fetch("s", Storage(f"{storage.uri}/")).info == first.info
    with Mirror(first, storage, pytest.fail):
        pass
    machine("two")
    assert fetch("s", storage).info.study_id == first.info.study_id


def test_two_histories_of_one_study_are_refused(first, second, storage, machine):
    with Mirror(second, storage, pytest.fail):
        second.journal().append(DONE)
    second.journal().append(TrainingEnded(notice=""))
    assert fetch("s", storage).journal().notice == "", "killed before the last copy, it is ahead here"
    machine("one")
    first.journal().append(TrialEnded(trial_id="00000", state=TrialState.FAIL, reason="here" * 9))
    with pytest.raises(StudyError, match="one side must be ahead"):
        fetch("s", storage)


def test_names_there_are_known_and_a_study_of_another_is_not_taken_for_one_of_it(first, storage, machine, tmp_path):
    (storage_elsewhere := tmp_path / "other").mkdir()
    with Mirror(first, storage, pytest.fail):
        pass
    with pytest.raises(StudyError, match=r": s, .*'sx'"):
        fetch("sx", storage)
    study(machine("two"), storage)
    with pytest.raises(StudyError, match="another of its name"):
        fetch("s", storage)
    study(machine("three"), Storage(str(storage_elsewhere)))
    storage.delete("s/study.json")
    with pytest.raises(StudyError, match="'s'"):
        fetch("s", storage)


def test_the_offset_in_a_copy_never_runs_ahead_of_its_events(first, storage, machine, slow_threads, monkeypatch):
    """MLflow would lack what lies between them, on the machine that goes on."""
    write = Storage.write
    begin(first)

    def while_it_grows(self: Storage, key: str, content: bytes, version: str | None) -> str:
        if key == "s/journal.jsonl":
            first.journal().append(TrainingEnded(notice=""))
            (first.path / "mlflow.offset").write_text(str(first.journal_path.stat().st_size))
        return write(self, key, content, version)

    (first.path / "mlflow.offset").write_text("0")
    monkeypatch.setattr(Storage, "write", while_it_grows)
    with Mirror(first, storage, pytest.fail):
        assert int(storage.get("s/mlflow.offset") or b"-1") <= len(storage.get("s/journal.jsonl") or b"")


def test_a_slow_copy_does_not_make_its_driver_seem_dead(first, storage, machine):
    def next_beat() -> None:
        storage.beat.clear()
        within(storage.beat)

    with Mirror(first, storage, pytest.fail):
        storage.gate.clear()
        first.journal().append(STARTED)
        within(storage.held)
        machine("two")
        with pytest.raises(StudyError, match="one on one"):
            Lease(storage, "s", HandClock(next_beat)).take()
        storage.gate.set()
    assert storage.get("s/journal.jsonl") is not None


def test_a_disk_that_cannot_be_read_for_a_while_does_not_end_the_copy(first, storage, monkeypatch, caplog):
    read, write = Path.read_bytes, Storage.write
    failed, broken, copied = threading.Event(), threading.Event(), threading.Event()

    def read_or_fail(path: Path) -> bytes:
        if broken.is_set() and path.name == "journal.jsonl" and path.parent == first.path:
            failed.set()
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    def write_and_say(store: Storage, key: str, content: bytes, version: str | None) -> str:
        written = write(store, key, content, version)
        if key == "s/journal.jsonl":
            copied.set()
        return written

    monkeypatch.setattr(Path, "read_bytes", read_or_fail)
    monkeypatch.setattr(Storage, "write", write_and_say)
    with Mirror(first, storage, pytest.fail):
        broken.set()
        first.journal().append(STARTED)
        within(failed)
        broken.clear()
        within(copied)
    assert storage.get("s/journal.jsonl") == read(first.path / "journal.jsonl")
    assert "waits, the search continues: OSError: [Errno 5] Input/output error" in caplog.text


def test_a_copy_that_is_not_whole_at_the_end_says_so(first, storage, slow_threads, monkeypatch, caplog):
    def away(*_: object) -> str:
        raise StorageError("The storage must be writable, but it is away.")

    with Mirror(first, storage, pytest.fail, HandClock()):
        first.journal().append(STARTED)
        monkeypatch.setattr(Storage, "write", away)
    assert "is not whole in" in caplog.text
    assert "`loraxs-search resume s` copies what it lacks" in caplog.text


def test_the_heartbeat_tells_of_a_copy_that_stands_still_ever_more_rarely(first, storage, monkeypatch, caplog):
    """The thread that copies cannot: it is held up in the storage."""
    clock, said = HandClock(), list[str]()
    monkeypatch.setattr(caplog.handler, "emit", lambda record: said.append(record.getMessage()))

    def after(*seconds: float) -> None:
        for each in (*seconds, 0.0):  # signs of life come through meanwhile; the last may have begun before
            clock.time += each
            for _ in range(2):
                storage.beat.clear()
                within(storage.beat)

    with Mirror(first, storage, pytest.fail, clock):
        storage.gate.clear()
        first.journal().append(STARTED)
        within(storage.held)
        for still_s, number in ((PATIENCE_S, 0), (2 * PATIENCE_S, 1)):
            after(*[PATIENCE_S / 3] * 2, PATIENCE_S / 3 - 1)
            assert len(said) == number
            after(1.0)
            assert f"stood still for {still_s:.0f} s, the search continues: the storage is slow" in said[number]
        storage.gate.set()
    assert said[2] == f"the copy of study 's' in {storage.uri} continues"


def test_what_speaks_of_files_is_copied_after_them_and_a_machines_own_is_not(first, storage, slow_threads, monkeypatch):
    """A copy that was cut short is one of an earlier moment; `study.json`, with which it exists, comes last."""
    write, keys = Storage.write, list[str]()
    last_to_first = [
        *("study.json", "candidates.json", "confirmed/00001.json", "journal.jsonl", "adapters/00001/manifest.json"),
        *("snapshots/00001", "baselines.json", "identity.json", "space.yaml"),
    ]
    for name in (*last_to_first, "optuna.jsonl", ".tracking.lock", "snapshots/.00001.part", "tune/x", "study.lock"):
        path = first.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(Storage, "write", lambda *given: (keys.append(given[1]), write(*given))[1])
    with Mirror(first, storage, pytest.fail):
        pass
    assert [key for key in keys if "/lease/" not in key] == [f"s/{name}" for name in last_to_first[::-1]]


# ---- taking and keeping ----------------------------------------------------------------------------------------------
def test_one_that_is_free_is_taken_without_a_wait(storage, machine):
    for name in ("one", "two"):
        machine(name)
        with Lease(storage, "s", clock := HandClock()).held():
            pass
        assert clock.slept_s == 0
    for _ in range(2):  # a driver killed here is followed by the next one here
        first = Lease(storage, "s", clock := HandClock())
        first.take()
        assert clock.slept_s == 0
    machine("one")
    Lease(storage, "s", clock := HandClock(first.release)).take()
    assert clock.slept_s == 1, "it is let go while it is watched"


def test_of_two_who_take_it_at_the_same_moment_one_is_refused(storage, machine, monkeypatch):
    machine("one")
    first, create = Lease(storage, "s", HandClock()), Storage.create
    machine("two")
    second = Lease(storage, "s", HandClock())

    def beaten(store: Storage, key: str, content: bytes) -> str | None:
        monkeypatch.setattr(Storage, "create", create)
        first.take()  # both have seen that it is free
        return create(store, key, content)

    monkeypatch.setattr(Storage, "create", beaten)
    with pytest.raises(StudyError, match="one on one"):
        second.take()
    first.renew()


def test_a_sign_of_life_that_was_written_and_reported_lost_counts(storage, machine, monkeypatch):
    """A connection that broke after the server had written: the next try finds another version, of its own."""
    machine("one")
    lease, write = Lease(storage, "s", HandClock()), Storage.write
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


def test_an_object_that_is_just_being_written_is_somebodys(storage, machine):
    """As on a file system without hard links."""
    machine("two")
    storage.create("s/lease/00000007.json", b"")
    held = Lease(storage, "s", clock := HandClock())
    held.take()
    assert (clock.slept_s, storage.keys("s/lease")) == (LEASE_S, ["s/lease/00000008.json"])
    storage.create("s/lease/00000009.json", b"")
    with pytest.raises(StudyError, match="one driver at a time, but another one took over"):
        held.renew()
    for number in (8, 9):
        storage.delete(f"s/lease/{number:08d}.json")
    with pytest.raises(StudyError, match="the lease was removed"):
        held.renew()


def test_another_container_of_this_machine_is_another_place(storage, machine, tmp_path):
    """Its state folder has the same path, and is another one: no lock of it keeps the two apart."""
    home = machine("one")
    first = Lease(storage, "s", HandClock())
    first.take()
    home.rename(tmp_path / "in the first container")
    with pytest.raises(StudyError, match="one on one"):
        Lease(storage, "s", HandClock(first.renew)).take()
    first.renew()


def test_time_goes_on_while_the_machine_is_suspended(monkeypatch):
    """As the monotonic clock of Linux does not."""
    monkeypatch.setattr("time.clock_gettime", {time.CLOCK_BOOTTIME: 50.0, time.CLOCK_MONOTONIC: 20.0}.__getitem__)
    assert Clock().now() == 50.0


def test_one_that_is_held_is_renewed(storage, machine):
    """However long a study takes to be fetched or removed."""
    machine("one")
    with Lease(storage, "s").held():
        within(storage.beat)


def test_the_time_of_a_sign_of_life_counts_from_before_it_was_written(storage, machine, monkeypatch):
    machine("one")
    own, write = Lease(storage, "s", clock := HandClock()), Storage.write
    own.take()

    def slow(*args: Any) -> str:
        clock.sleep(LEASE_S)
        return write(*args)

    monkeypatch.setattr(Storage, "write", slow)
    own.renew()
    assert not own.is_sure, "others have waited as long as they must"


# ---- a driver that was taken over ------------------------------------------------------------------------------------
def test_who_was_taken_over_writes_no_more_and_its_last_is_replaced(first, storage, machine, slow_threads, monkeypatch):
    """It slept, or was cut off, and does not know of it."""
    lost, key = threading.Event(), "s/journal.jsonl"
    with Mirror(first, storage, lost.set, clock := HandClock()) as old:
        first.journal().append(STARTED)
        old.copy()
        machine("two")
        monkeypatch.setattr(lease, "Clock", HandClock)  # it shows no sign of life, and is not waited for
        second = fetch("s", storage)
        with Mirror(second, storage, pytest.fail, HandClock()) as new:
            storage.write(key, b"what was under way for a minute", storage.versions("s")[key])
            second.journal().append(replace(DONE, reason="there"))
            new.copy()
            assert (there := storage.get(key)) == (second.path / "journal.jsonl").read_bytes()
            first.journal().append(replace(DONE, reason="here"))
            first.write_adapter("00000", {"a": b"here"})  # which the other one lacks
            clock.time += 2  # what was seen a moment ago counts
            with pytest.raises(StudyError, match="one on two"):
                old.copy()
            assert (storage.get(key), storage.get("s/adapters/00000/a")) == (there, None)
    assert lost.is_set()
    assert storage.get(key) == there


def test_what_a_late_driver_put_in_place_of_something_old_does_not_stay(first, storage, slow_threads):
    """The one that took over has nothing to write there any more."""
    with Mirror(first, storage, pytest.fail, HandClock()):
        key = "s/space.yaml"
        storage.write(key, b"late", storage.versions("s")[key])
    assert storage.get(key) == first.space_path.read_bytes()


def test_who_could_not_renew_for_half_a_minute_writes_nothing_until_it_can(first, storage, slow_threads, monkeypatch):
    """Another driver may be at work by then."""
    monkeypatch.setattr(lease, "HEARTBEAT_EVERY_S", 0.02)
    clock = HandClock()
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


def test_a_driver_that_works_on_is_told_that_it_was_taken_over(first, storage):
    lost = threading.Event()
    with Mirror(first, storage, lost.set) as kept:
        storage.create("s/lease/00000002.json", json.dumps({"token": "theirs", "host": "two"}).encode())
        within(lost)
        first.journal().append(STARTED)
    assert "one on two took over" in str(kept.lost_to)
    assert storage.get("s/journal.jsonl") is None
    assert storage.keys("s/lease") == [f"s/lease/{number:08d}.json" for number in (1, 2)]
