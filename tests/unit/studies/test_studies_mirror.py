"""A study's copy in a folder and in a real S3 server: kept up, taken up elsewhere, by one driver at a time."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from support.reports import report
from support.studies import SlowStorage, state, within
from support.studies import mirrored_study as study

from loraxs_search.errors import StudyError
from loraxs_search.log.events import TrainingEnded, TrialEnded, TrialReported, TrialStarted
from loraxs_search.records.search import Baseline
from loraxs_search.records.trial import TrialState
from loraxs_search.studies import mirror
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.lease import Lease
from loraxs_search.studies.mirror import Mirror, fetch
from loraxs_search.studies.storage import Storage

pytestmark = pytest.mark.usefixtures("quick_threads")
DONE = TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason="done")


def keep(folder: StudyFolder, storage: Storage) -> Mirror:
    return Mirror(folder, storage, lambda: None)


def begin(folder: StudyFolder, *steps: int) -> None:
    journal = folder.journal()
    journal.append(TrialStarted(trial_id="00000", params={"rank": 4}))
    for step in steps:
        folder.snapshots.write("00000", state("00000", f"{step}"))
        journal.append(TrialReported(report=report("00000", step, 0.5)))


def test_another_machine_goes_on_with_what_was_written(each_storage, machine):
    storage = each_storage
    first = study(machine("one"), storage)
    (first.path / "mlflow.offset").write_text("17")
    (first.path / "space.json").write_text("{}")
    with keep(first, storage):
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


def test_a_machine_whose_own_store_has_the_same_path_records_all_anew_too(storage, machine, tmp_path):
    home = machine("one")
    first = study(home, storage)
    (first.path / "mlflow.offset").write_text("17")
    with keep(first, storage):
        begin(first, 2)
    home.rename(tmp_path / "lost")
    home.mkdir()
    (home / "mlflow.db").write_text("of other studies")
    second = fetch("s", storage)
    assert second.info.tracking_uri == first.info.tracking_uri == f"sqlite:///{home}/mlflow.db"
    assert not (second.path / "mlflow.offset").exists()


def test_a_fetch_that_is_cut_short_leaves_no_offset_of_another_machines_store(storage, machine, monkeypatch):
    """With the journal here nothing is fetched again, and MLflow here would lack what it speaks of."""
    first = study(machine("one"), storage)
    with keep(first, storage):
        begin(first, 2)
    (first.path / "mlflow.offset").write_text("17")
    machine("two")
    second = fetch("s", storage)
    with keep(second, storage):
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


def test_the_copy_follows_while_the_driver_works_and_back_again(storage, machine):
    slow = SlowStorage(storage.uri)
    first = study(machine("one"), slow)
    with keep(first, slow):
        slow.gate.clear()
        begin(first, 2)
        within(slow.held)
        slow.gate.set()
    machine("two")
    second = fetch("s", storage)
    with keep(second, storage):
        second.journal().append(DONE)
        second.write_candidates([])
    machine("one")
    with pytest.raises(StudyError, match="another driver continued"), keep(StudyFolder.open("s"), storage):
        pass
    again = fetch("s", storage)
    assert again.journal().records["00000"].state is TrialState.COMPLETE
    assert again.candidates() == []


def test_a_study_whose_driver_died_before_its_first_copy_goes_on_here(storage, machine):
    """Or was refused by the storage: there is nothing of it there, and all of it here."""
    first = study(machine("one"), storage)
    assert fetch("s", storage).info == first.info
    Lease(storage, "s").take()
    assert fetch("s", Storage(f"{storage.uri}/")).info == first.info
    with keep(first, storage):
        pass
    machine("two")
    assert fetch("s", storage).info.study_id == first.info.study_id


def test_two_histories_of_one_study_are_refused(storage, machine):
    first = study(machine("one"), storage)
    with keep(first, storage):
        begin(first, 2)
    machine("two")
    second = fetch("s", storage)
    with keep(second, storage):
        second.journal().append(DONE)
    second.journal().append(TrainingEnded(notice=""))
    assert fetch("s", storage).journal().notice == "", "killed before the last copy, it is ahead here"
    machine("one")
    first.journal().append(TrialEnded(trial_id="00000", state=TrialState.FAIL, reason="here" * 9))
    with pytest.raises(StudyError, match="one side must be ahead"):
        fetch("s", storage)


def test_names_in_the_storage_are_known_and_a_study_of_another_is_not_taken_for_one_of_it(storage, machine, tmp_path):
    (storage_elsewhere := tmp_path / "other").mkdir()
    with keep(study(machine("one"), storage), storage):
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


def test_the_offset_in_a_copy_never_runs_ahead_of_its_events(storage, machine, slow_threads, monkeypatch):
    """MLflow would lack what lies between them, on the machine that goes on."""
    first, write = study(machine("one"), storage), Storage.write
    begin(first)

    def while_it_grows(self: Storage, key: str, content: bytes, version: str | None) -> str:
        if key == "s/journal.jsonl":
            first.journal().append(TrainingEnded(notice=""))
            (first.path / "mlflow.offset").write_text(str(first.journal_path.stat().st_size))
        return write(self, key, content, version)

    (first.path / "mlflow.offset").write_text("0")
    monkeypatch.setattr(Storage, "write", while_it_grows)
    with keep(first, storage):
        assert int(storage.get("s/mlflow.offset") or b"-1") <= len(storage.get("s/journal.jsonl") or b"")
