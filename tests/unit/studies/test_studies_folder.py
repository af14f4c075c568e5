from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.searched_studies import Tried, confirm, searched
from support.studies import state, study

from loraxs_search.errors import HomeError, StudyError
from loraxs_search.records.search import Candidate, Refit
from loraxs_search.records.task import Identity
from loraxs_search.studies.folder import StudyFolder, list_studies, studies_root


@pytest.fixture
def one():
    return study("one")


def test_what_is_written_of_a_study_is_read_back():
    folder = study("one", "https://mlflow.example:5000")
    assert (folder.identity.read(), folder.candidates(), folder.snapshots.read("00000")) == (None, None, None)
    folder.identity.write(Identity("weights", "rows"))
    candidate = Candidate("one", "00000", "t", {"accuracy": 0.8}, {"accuracy": 0.81}, 100, "d", "b")
    folder.write_candidates([candidate])
    for content in (b"1", b"2"):
        folder.snapshots.write("00000", state("00000", content.decode()))
        folder.write_adapter("00000", {content.decode(): content})
    again = StudyFolder.open("one")
    assert (again.info, again.space_path.read_text()) == (folder.info, "task: sst2\n")
    assert (again.identity.read(), again.candidates()) == (Identity("weights", "rows"), [candidate])
    assert again.snapshots.read("00000") == state("00000", "2")
    assert [p.name for p in (folder.path / "snapshots").iterdir()] == ["00000.safetensors"]
    assert {p.name: p.read_bytes() for p in folder.adapter_path("00000").iterdir()} == {"2": b"2"}
    assert list_studies() == ["one"]
    with pytest.raises(StudyError, match="one"):
        StudyFolder.open("on")


@pytest.mark.parametrize("name", ["../x", "x" * 101])
def test_a_malformed_name_is_refused_and_nothing_is_written(name, fresh_home):
    with pytest.raises(StudyError, match="study name"):
        study(name)
    assert not fresh_home.exists()
    fresh_home.write_text("not a folder")
    with pytest.raises(HomeError) as caught:
        study("one")
    assert "LORAXS_HOME" in str(caught.value.hint)


def test_a_folder_that_is_no_whole_study_is_not_taken_for_a_new_one():
    """As when a machine was lost while it fetched one."""
    (studies_root() / "one").mkdir(parents=True)
    for use in (lambda: StudyFolder.check_new("one"), lambda: study("one")):
        with pytest.raises(StudyError, match=r"studies/one .*study\.json"):
            use()
    assert [path.name for path in studies_root().iterdir()] == ["one"]


def test_of_many_at_once_one_creates_the_study():
    made: list[str] = []

    def create() -> None:
        with contextlib.suppress(StudyError):
            made.append(study("one").info.study_id)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    assert [StudyFolder.open("one").info.study_id] == made
    assert [path.name for path in studies_root().iterdir()] == ["one"]


# ---- who holds it ----------------------------------------------------------------------------------------------------
def test_two_drivers_cannot_hold_a_study_and_a_dead_one_lets_go(one):
    code = (
        "import sys, time; from loraxs_search.studies.folder import StudyFolder\n"
        "with StudyFolder.open('one').lock():\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert one.is_running()
        with pytest.raises(StudyError, match="one driver at a time"), one.lock():
            pass
        other.kill()
        other.wait()
    assert not one.is_running()


def test_who_asks_whether_a_study_runs_writes_nothing_and_holds_nothing(one):
    """It may lie on a disk that only others write to, and two may ask at once."""
    assert not one.is_running()
    lock = one.path / "study.lock"
    assert not lock.exists()
    with one.lock():
        pass
    lock.chmod(0o444)
    with lock.open("rb") as file:  # as who else asks
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not one.is_running()


def test_a_study_that_is_removed_before_it_is_locked_is_gone(one):
    shutil.rmtree(one.path)
    with pytest.raises(StudyError, match="was removed meanwhile"), one.lock():
        pytest.fail("it is gone")
    assert not one.path.exists()


# ---- states and adapters of trials -----------------------------------------------------------------------------------
@pytest.mark.parametrize("other", [state("00001"), state("00000", study="two"), b"no snapshot"])
def test_a_state_of_another_trial_or_study_is_neither_written_nor_read(one, other):
    """As a command's id that was a path once put one there."""
    own = state("00000", study="one")
    one.snapshots.write("00000", own)
    with pytest.raises(StudyError):
        one.snapshots.write("00000", other)
    assert one.snapshots.read("00000") == own
    (one.path / "snapshots" / "00000.safetensors").write_bytes(other)
    for read in (one.snapshots.read, one.snapshots.read_kept):
        with pytest.raises(StudyError) as caught:
            read("00000")
        assert "restore" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["../snapshots/00001", "٣"])
def test_an_id_that_leads_elsewhere_is_refused_wherever_it_becomes_a_path(one, name):
    confirmed = one.confirmed
    uses: list[Callable[[], object]] = [
        lambda: one.snapshots.read(name),
        lambda: one.snapshots.write(name, state(name)),
        lambda: one.write_adapter(name, {"a": b""}),
        lambda: confirmed.rows_path(name),
        lambda: confirmed.refit(name).write(Refit(1)),
        lambda: confirmed.validation(name).write({}),
        lambda: confirmed.answers(name),
    ]
    before = sorted(studies_root().rglob("*"))
    for use in uses:
        with pytest.raises(StudyError, match="id must be"):
            use()
    assert sorted(studies_root().rglob("*")) == before


@pytest.mark.parametrize(("survives", "expected"), [(1, b"1"), (2, b"2")])
def test_an_adapter_whose_replacement_was_killed_is_whole_once_the_study_is_opened(
    one, monkeypatch, survives, expected
):
    """The old one as long as the new one is not in its place, and nothing is left beside it."""
    path = one.write_adapter("00000.1", {"a": b"1"})
    renames: list[Path] = []

    def renamed(source: Path, target: Path) -> Path:
        if len(renames) == survives:
            raise KeyboardInterrupt
        renames.append(source)
        return rename(source, target)

    rename = Path.rename
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", renamed)
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # what a kill does not do
        try:
            one.write_adapter("00000.1", {"a": b"2"})
        except KeyboardInterrupt:
            assert survives == 1
    StudyFolder.open("one")
    assert (path / "a").read_bytes() == expected
    assert not sorted(path.parent.glob(".*.old"))
    with one.lock():  # whoever is at work on the study replaces it now
        aside = path.rename(path.with_name(".00000.1.old"))
        StudyFolder.open("one")
        assert aside.exists()


def test_candidates_of_before_are_set_aside_with_their_finalists(fresh_home):
    folder = searched("s", [Tried({"rank": 4}, 0.9), Tried({"rank": 8}, 0.8)])
    for _ in range(2):  # a driver may be killed in between
        confirm(folder, "00000", [0.9], [1, 0], [1, 1])
        folder.set_candidates_aside()
        folder.set_candidates_aside()
        assert folder.candidates() is None
    assert folder.earlier_finalists() == ("00000",)
    study("new").set_candidates_aside()  # of none there is nothing to set aside
    confirm(folder, "00001", [0.8], [1, 1], [1, 1])
    assert folder.earlier_finalists() == ("00000",), "the other one is of now"
    folder.set_candidates_aside()
    assert folder.earlier_finalists() == ("00000", "00001")
    assert folder.confirmed.finalists() == ("00000", "00001"), "what they have answered is not asked again"
