from __future__ import annotations

import errno
import fcntl
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.searched_studies import Tried, confirm, searched
from support.studies import state

from loraxs_search.errors import HomeError, StudyError
from loraxs_search.records.base import BaseModelRef, Identity
from loraxs_search.records.promotion import Candidate, PromotionRule, Refit
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import DataSource, Task
from loraxs_search.studies import folder as folder_module
from loraxs_search.studies.folder import StudyFolder, list_studies, studies_root
from loraxs_search.studies.info import StudyInfo

TASK = Task("t", "sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",))


def info(name: str) -> StudyInfo:
    return StudyInfo(
        name, "id", TASK, BaseModelRef("base"), SearchPlan(), PromotionRule(), "s.yaml", "/", "sqlite://", time.time()
    )


def test_what_is_written_of_a_study_is_read_back():
    server = replace(info("one"), tracking_uri="https://mlflow.example:5000")
    folder = StudyFolder.create(server, "task: t\n")
    assert (folder.identity.read(), folder.candidates(), folder.snapshots.read("00000")) == (None, None, None)
    folder.identity.write(Identity("weights", "rows"))
    candidate = Candidate("one", "00000", "t", {"accuracy": 0.8}, {"accuracy": 0.81}, 100, "d", "b")
    folder.write_candidates([candidate])
    for content in (b"1", b"2"):
        folder.snapshots.write("00000", state("00000", content.decode()))
        folder.write_adapter("00000", {content.decode(): content})
    again = StudyFolder.open("one")
    assert again.info == server
    assert again.space_path.read_text() == "task: t\n"
    assert (again.identity.read(), again.candidates()) == (Identity("weights", "rows"), [candidate])
    assert again.snapshots.read("00000") == state("00000", "2")
    assert [p.name for p in (folder.path / "snapshots").iterdir()] == ["00000.safetensors"]
    assert {p.name: p.read_bytes() for p in folder.adapter_path("00000").iterdir()} == {"2": b"2"}
    assert list_studies() == ["one"]
    with pytest.raises(StudyError, match="already exists") as caught:
        StudyFolder.create(info("one"), "second")
    assert "resume one" in str(caught.value.hint)
    assert again.space_path.read_text() == "task: t\n"
    with pytest.raises(StudyError, match="one"):
        StudyFolder.open("on")


@pytest.mark.parametrize("name", ["../x", "x" * 101])
def test_a_malformed_name_is_refused_and_nothing_is_written(name, fresh_home):
    with pytest.raises(StudyError, match="study name"):
        StudyFolder.create(info(name), "")
    assert not fresh_home.exists()
    fresh_home.write_text("not a folder")
    with pytest.raises(HomeError) as caught:
        StudyFolder.create(info("one"), "")
    assert "LORAXS_HOME" in str(caught.value.hint)


def test_a_folder_that_is_no_whole_study_is_not_taken_for_a_new_one():
    """As when a machine was lost while it fetched one."""
    left = studies_root() / "one" / "journal.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text("")
    for use in (lambda: StudyFolder.check_new("one"), lambda: StudyFolder.create(info("one"), "")):
        with pytest.raises(StudyError, match=r"studies/one .*study\.json"):
            use()
    assert left.exists()
    assert [path.name for path in studies_root().iterdir()] == ["one"]


def test_of_many_at_once_one_creates_the_study(monkeypatch):
    told: list[str] = []

    def create(text: str) -> None:
        try:
            StudyFolder.create(info("one"), text)
        except StudyError as error:
            assert "already exists" in error.message
        else:
            told.append(text)

    threads = [threading.Thread(target=create, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [StudyFolder.open("one").space_path.read_text()] == told
    assert [path.name for path in studies_root().iterdir()] == ["one"]


def test_two_drivers_cannot_hold_a_study_and_a_dead_one_lets_go():
    folder = StudyFolder.create(info("one"), "")
    code = (
        "import sys, time; from loraxs_search.studies.folder import StudyFolder\n"
        "with StudyFolder.open('one').lock():\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert folder.is_running()
        with pytest.raises(StudyError, match="one driver at a time"), folder.lock():
            pass
        other.kill()
        other.wait()
    assert not folder.is_running()


def test_who_asks_whether_a_study_runs_writes_nothing_and_holds_nothing():
    """It may lie on a disk that only others write to, and two may ask at once."""
    folder = StudyFolder.create(info("one"), "")
    assert not folder.is_running()
    assert not (folder.path / "study.lock").exists()
    with folder.lock():
        pass
    (folder.path / "study.lock").chmod(0o444)
    code = (
        "import sys, time, fcntl, pathlib\n"
        "file = pathlib.Path(sys.argv[1]).open('rb'); fcntl.flock(file, fcntl.LOCK_SH)\n"
        "print('asks', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder.path / "study.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "asks\n"
        assert not folder.is_running()
        other.kill()


@pytest.mark.parametrize("other", [state("00001"), state("00000", study="two"), b"no snapshot"])
def test_a_state_of_another_trial_or_study_is_neither_written_nor_read(other):
    """As a command's id that was a path once put one there."""
    folder = StudyFolder.create(info("one"), "")
    own = state("00000", study="one")
    folder.snapshots.write("00000", own)
    with pytest.raises(StudyError):
        folder.snapshots.write("00000", other)
    assert folder.snapshots.read("00000") == own
    (folder.path / "snapshots" / "00000.safetensors").write_bytes(other)
    for read in (folder.snapshots.read, folder.snapshots.read_kept):
        with pytest.raises(StudyError) as caught:
            read("00000")
        assert "restore" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["../snapshots/00001", "00000.step-8", "٣"])
def test_an_id_that_leads_elsewhere_is_refused_wherever_it_becomes_a_path(name):
    folder = StudyFolder.create(info("one"), "")
    confirmed, refit = folder.confirmed, Refit(1)
    uses: list[Callable[[], object]] = [
        lambda: folder.snapshots.read(name),
        lambda: folder.snapshots.write(name, state(name)),
        lambda: folder.write_adapter(name, {"a": b""}),
        lambda: folder.adapter_path(name),
        lambda: confirmed.rows_path(name),
        lambda: confirmed.refit(name),
        lambda: confirmed.refit(name).write(refit),
        lambda: confirmed.validation(name).write({}),
        lambda: confirmed.answers(name),
    ]
    before = sorted(studies_root().rglob("*"))
    for use in uses:
        with pytest.raises(StudyError, match="id must be"):
            use()
    assert sorted(studies_root().rglob("*")) == before


@pytest.mark.parametrize(("survives", "expected"), [(1, b"1"), (2, b"2")])
def test_an_adapter_whose_replacement_was_killed_is_whole_once_the_study_is_opened(monkeypatch, survives, expected):
    """The old one as long as the new one is not in its place, and nothing is left beside it."""
    folder = StudyFolder.create(info("one"), "")
    path = folder.write_adapter("00000.1", {"a": b"1"})
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
        if survives == 1:
            with pytest.raises(KeyboardInterrupt):
                folder.write_adapter("00000.1", {"a": b"2"})
        else:
            folder.write_adapter("00000.1", {"a": b"2"})
    StudyFolder.open("one")
    assert (path / "a").read_bytes() == expected
    assert not sorted(path.parent.glob(".*.old"))


@pytest.mark.parametrize("survives", ["nothing", "the folder of the lock"])
def test_a_study_that_is_removed_before_it_is_locked_is_gone(survives, monkeypatch):
    folder = StudyFolder.create(info("one"), "")
    shutil.rmtree(folder.path)
    if survives == "nothing":  # it goes between the making of its folder and that of its lock

        class Late:
            def acquire(self, timeout: float) -> None:
                raise FileNotFoundError

        monkeypatch.setattr(folder_module, "file_lock", lambda _: Late())
    with pytest.raises(StudyError, match="was removed meanwhile"), folder.lock():
        pytest.fail("it is gone")
    assert not folder.path.exists()


def test_a_study_that_may_not_be_written_can_be_kept_as_it_is_while_it_is_read(monkeypatch):
    folder = StudyFolder.create(info("one"), "")
    with folder.lock():
        pass

    class Others:
        def acquire(self, timeout: float) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(folder_module, "file_lock", lambda _: Others())
    with pytest.raises(HomeError), folder.lock():
        pytest.fail("it may not be written")
    with folder.lock(to_read=True), (folder.path / "study.lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (folder.path / "study.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StudyError, match="another process is at work"), folder.lock(to_read=True):
            pytest.fail("its driver is at work")


def test_an_adapter_that_is_being_replaced_is_left_to_who_does():
    folder = StudyFolder.create(info("one"), "")
    path = folder.write_adapter("00000", {"a": b"1"})
    with folder.lock():
        aside = path.rename(path.with_name(".00000.old"))
        StudyFolder.open("one")
        assert aside.exists()
    StudyFolder.open("one")
    assert (path / "a").read_bytes() == b"1"


def test_candidates_of_before_are_set_aside_with_their_finalists(fresh_home):
    folder = searched("s", [Tried({"rank": 4}, 0.9), Tried({"rank": 8}, 0.8)])
    for _ in range(2):  # a driver may be killed in between
        confirm(folder, "00000", [0.9], [1, 0], [1, 1])
        folder.set_candidates_aside()
        folder.set_candidates_aside()
        assert folder.candidates() is None
    assert folder.earlier_finalists() == ("00000",)
    StudyFolder.create(info("new"), "").set_candidates_aside()  # of none there is nothing to set aside
    confirm(folder, "00001", [0.8], [1, 1], [1, 1])
    folder.set_candidates_aside()
    assert folder.earlier_finalists() == ("00000", "00001")
    assert folder.confirmed.rows_path("00000").is_file(), "what it has answered is not asked again"
    assert folder.confirmed.finalists() == ("00000", "00001"), "also where the end of a search was interrupted"
