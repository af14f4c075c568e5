"""What is copied first; and a copy that is slow or stands still: its driver is not taken for dead, and that is said."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from support.studies import SlowStorage, within
from support.studies import mirrored_study as study

from loraxs_search.errors import StorageError, StudyError
from loraxs_search.log.events import TrialStarted
from loraxs_search.studies.lease import Lease
from loraxs_search.studies.mirror import PATIENCE_S, Mirror
from loraxs_search.studies.storage import Storage

STARTED = TrialStarted(trial_id="00000", params={"rank": 4})


def test_a_slow_copy_does_not_make_its_driver_seem_dead(storage, machine, make_clock, quick_threads):
    slow = SlowStorage(storage.uri)
    first = study(machine("one"), slow)

    def next_beat() -> None:
        slow.beat.clear()
        within(slow.beat)

    with Mirror(first, slow, pytest.fail):
        slow.gate.clear()
        first.journal().append(STARTED)
        within(slow.held)
        machine("two")
        with pytest.raises(StudyError, match="one on one"):
            Lease(Storage(storage.uri), "s", make_clock(next_beat)).take()
        slow.gate.set()
    assert Storage(storage.uri).get("s/journal.jsonl") is not None


def test_a_disk_that_cannot_be_read_for_a_while_does_not_end_the_copy(
    storage, machine, quick_threads, monkeypatch, caplog
):
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

    first = study(machine("one"), storage)
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


def test_a_copy_that_is_not_whole_at_the_end_says_so(storage, machine, make_clock, slow_threads, monkeypatch, caplog):
    def away(*_: object) -> str:
        raise StorageError("The storage must be writable, but it is away.")

    first = study(machine("one"), storage)
    with Mirror(first, storage, pytest.fail, make_clock()):
        first.journal().append(STARTED)
        monkeypatch.setattr(Storage, "write", away)
    assert "is not whole in" in caplog.text
    assert "`loraxs-search resume s` copies what it lacks" in caplog.text


def test_the_heartbeat_tells_of_a_copy_that_stands_still_and_then_more_and_more_rarely(
    storage, machine, make_clock, quick_threads, monkeypatch, caplog
):
    """The thread that copies cannot: it is held up in the storage."""
    slow, clock = SlowStorage(storage.uri), make_clock()
    first, said = study(machine("one"), slow), list[str]()
    monkeypatch.setattr(caplog.handler, "emit", lambda record: said.append(record.getMessage()))

    def after(*seconds: float) -> None:
        for each in (*seconds, 0.0):  # signs of life come through meanwhile; the last may have begun before
            clock.time += each
            for _ in range(2):
                slow.beat.clear()
                within(slow.beat)

    with Mirror(first, slow, pytest.fail, clock):
        slow.gate.clear()
        first.journal().append(STARTED)
        within(slow.held)
        for still_s, number in ((PATIENCE_S, 0), (2 * PATIENCE_S, 1)):
            after(*[PATIENCE_S / 3] * 2, PATIENCE_S / 3 - 1)
            assert len(said) == number
            after(1.0)
            assert f"stood still for {still_s:.0f} s, the search continues: the storage is slow" in said[number]
        slow.gate.set()
    assert said[2] == f"the copy of study 's' in {slow.uri} continues"


def test_what_speaks_of_other_files_is_copied_after_them_and_what_belongs_to_one_machine_is_not(
    storage, machine, slow_threads, monkeypatch
):
    """A copy that was cut short is one of an earlier moment; `study.json`, with which it exists, comes last."""
    first, write, keys = study(machine("one"), storage), Storage.write, list[str]()
    last_to_first = [
        *("study.json", "candidates.json", "confirmed/00001.json", "journal.jsonl", "adapters/00001/manifest.json"),
        *("snapshots/00001", "baselines.json", "identity.json", "space.yaml", "tracking.id"),
    ]
    for name in (*last_to_first, "optuna.jsonl", ".tracking.lock", "snapshots/.00001.part", "tune/x", "study.lock"):
        path = first.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(Storage, "write", lambda *given: (keys.append(given[1]), write(*given))[1])
    with Mirror(first, storage, pytest.fail):
        pass
    assert [key for key in keys if "/lease/" not in key] == [f"s/{name}" for name in last_to_first[::-1]]
