"""A study as a folder: what is written is read back, held by one, and what a disk or a hand has damaged is named."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from support.studies import TASK, Tried, confirm, searched, state, study
from support.toys import report

import loraxs_search
from loraxs_search.errors import HomeError, StudyError, TrackingError, UnknownTaskError
from loraxs_search.home import remove_whole, write_atomic
from loraxs_search.log.events import TrialStarted
from loraxs_search.log.study_log import StudyLog
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.search import Candidate, Command, Refit, SearchPlan
from loraxs_search.records.task import Identity, LinearModule
from loraxs_search.reports.study_status import study_summaries
from loraxs_search.search.driver.launch import resume
from loraxs_search.search.driver.result import sync
from loraxs_search.search_space import parameters
from loraxs_search.search_space.load import load_space, parse_space
from loraxs_search.search_space.space import Space
from loraxs_search.studies import snapshots
from loraxs_search.studies.folder import CommandInbox, StudyFolder, list_studies, studies_root
from loraxs_search.studies.mirror import Mirror, fetch
from loraxs_search.studies.record_files import STUDY_FORMAT
from loraxs_search.studies.snapshots import read_reports
from loraxs_search.studies.storage import Storage
from loraxs_search.trial.snapshot import Snapshot


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
    with pytest.raises(HomeError, check=lambda it: "LORAXS_HOME" in it.hint):
        study("one")


def test_a_folder_that_is_no_whole_study_is_not_taken_for_a_new_one():
    """As when a machine was lost while it fetched one."""
    (studies_root() / "one").mkdir(parents=True)
    for use in (lambda: StudyFolder.check_new("one"), lambda: study("one")):
        with pytest.raises(StudyError, match=r"studies/one .*study\.json"):
            use()
    assert [path.name for path in studies_root().iterdir()] == ["one"]


def test_of_many_at_once_one_creates_the_study():
    def create(_: int) -> str | None:
        with contextlib.suppress(StudyError):
            return study("one").info.study_id

    with ThreadPoolExecutor(8) as callers:
        made = [study_id for study_id in callers.map(create, range(8)) if study_id]
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
        with pytest.raises(StudyError, check=lambda it: "restore" in it.hint):
            read("00000")


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
def test_an_adapter_whose_replacement_was_killed_is_whole_once_opened(one, monkeypatch, survives, expected):
    """The old one as long as the new one is not in its place, and nothing is left beside it."""
    path = one.write_adapter("00000.1", {"a": b"1"})
    rename, left = Path.rename, iter(range(survives))

    def renamed(source: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", renamed)
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # what a kill does not do
        with contextlib.suppress(KeyboardInterrupt):
            one.write_adapter("00000.1", {"a": b"2"})
    StudyFolder.open("one")
    assert (path / "a").read_bytes() == expected
    assert not sorted(path.parent.glob(".*.old"))
    with one.lock():  # whoever is at work on the study replaces it now
        aside = path.rename(path.with_name(".00000.1.old"))
        StudyFolder.open("one")
        assert aside.exists()


def test_candidates_of_before_are_set_aside_with_their_finalists():
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


# ---- commands that wait in it ----------------------------------------------------------------------------------------
STOP = Command("c1", "stop", ("00001",), {"now": True}, {"rank": 8}, "ann", 2.0)
TYPED = Command("c2", "finish", issued_at=1.0)


def test_commands_wait_oldest_first_until_they_are_removed(tmp_path):
    inbox = CommandInbox(tmp_path / "commands")
    assert list(inbox.waiting()) == []
    for command in (TYPED, STOP):
        inbox.put(command)
    assert list(inbox.waiting()) == [TYPED, STOP]
    for _ in range(2):
        inbox.remove("c2")
    late = Command("c3", "stop", issued_at=0.5)  # the clock was set back
    inbox.put(late)
    assert [command.command_id for command in inbox.waiting()] == ["c1", "c3"]


def test_a_command_for_a_study_that_is_removed_meanwhile_brings_nothing_of_it_back(tmp_path):
    study = tmp_path / "gone"
    study.mkdir()
    inbox = CommandInbox(study / "commands")
    inbox.put(TYPED)
    remove_whole(study)
    with pytest.raises(StudyError, match="gone"):
        inbox.put(STOP)
    assert not study.exists()


@pytest.mark.parametrize("content", ["{", '{"command_id": "other", "verb": "stop"}'])
def test_what_is_no_command_is_set_aside_and_what_cannot_be_read_stops_no_other(content, tmp_path, caplog):
    inbox = CommandInbox(tmp_path)
    inbox.put(STOP)
    write_atomic(tmp_path / "bad.json", content)
    write_atomic(tmp_path / ".half.json.tmp", content)  # of a sender that was killed
    (tmp_path / f"{'b' * 32}.json").mkdir()  # as unreadable as a file of somebody who lets nobody else read it
    assert list(inbox.waiting()) == [STOP]
    assert (tmp_path / "bad.json").exists(), "who only looks renames nothing"
    for _ in range(2):
        assert list(inbox.waiting(set_aside=True)) == [STOP]
    assert (caplog.text.count("is no command"), caplog.text.count("cannot be read")) == (1, 1)


# ---- the state of a trial's best step, kept beside its last one, whatever is killed when and wherever it goes on -----
SCORES = {10: 0.5, 20: 0.7, 30: 0.6, 40: 0.7, 50: 0.8, 60: 0.1}


def snapshot(step: int, scores: dict[int, float] = SCORES, trial: str = "00000") -> bytes:
    reports = tuple(report(trial, at, score) for at, score in scores.items() if at <= step)
    return Snapshot(trial, step, {}, {}, reports, 1.0, 10).to_bytes()


def step_of(state: bytes | None) -> int | None:
    return None if state is None else read_reports(state)[-1].step


@pytest.fixture
def kept():
    return study("best", search=SearchPlan(checkpoint="best"))


def files(kept: StudyFolder) -> list[str]:
    return sorted(path.name for path in (kept.path / "snapshots").iterdir())


def test_the_last_state_resumes_and_the_best_is_the_adapter(kept):
    assert kept.snapshots.read_kept("00000") is None
    best = {10: 10, 20: 20, 30: 20, 40: 20, 50: 50, 60: 50}
    for step in SCORES:
        kept.snapshots.write("00000", snapshot(step))
        assert step_of(kept.snapshots.read("00000")) == step
        assert step_of(kept.snapshots.read_kept("00000")) == best[step]
        assert len(files(kept)) <= 3  # the last, the best, and the one before that while the best is new
    assert files(kept) == ["00000.safetensors", "00000.step-50.safetensors"]
    for step in (10, 20):  # of a refit, which is apart
        kept.snapshots.write("00000.1", snapshot(step, {10: 0.9, 20: 0.1}, "00000.1"))
    assert (step_of(kept.snapshots.read_kept("00000")), step_of(kept.snapshots.read_kept("00000.1"))) == (50, 10)
    (kept.path / "snapshots" / "00000.step-50.safetensors").unlink()
    with pytest.raises(StudyError, match=r"00000\.step-50\.safetensors"):
        kept.snapshots.read_kept("00000")


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_state_that_comes_late_replaces_no_newer_one(checkpoint):
    """As from a node that stood still while the trial went on elsewhere."""
    trial = study(checkpoint, search=SearchPlan(checkpoint=checkpoint))
    for step in (10, 20, 30, 40, 50):
        trial.snapshots.write("00000", snapshot(step))
    before, kept = files(trial), trial.snapshots.read_kept("00000")
    if checkpoint == "last":
        assert (before, kept) == (["00000.safetensors"], trial.snapshots.read("00000"))
    trial.snapshots.write("00000", snapshot(20, SCORES | {20: 0.99}))
    assert step_of(trial.snapshots.read("00000")) == 50
    assert (files(trial), trial.snapshots.read_kept("00000")) == (before, kept)
    (trial.path / "snapshots" / "00000.safetensors").write_bytes(b"damaged")
    trial.snapshots.write("00000", snapshot(20))
    assert step_of(trial.snapshots.read("00000")) == 20


def test_a_kill_between_two_writes_loses_nothing(kept, monkeypatch):
    for step in (10, 20, 30, 40):
        kept.snapshots.write("00000", snapshot(step))

    def killed(path: Path, content: bytes) -> None:
        write(path, content)
        raise KeyboardInterrupt

    write = snapshots.write_atomic
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            kept.snapshots.write("00000", snapshot(50))
    assert "00000.step-50.safetensors" in files(kept)
    assert (step_of(kept.snapshots.read("00000")), step_of(kept.snapshots.read_kept("00000"))) == (40, 20)
    scores = SCORES | {50: 0.3}  # repeated elsewhere, it is not the best again
    for step in (50, 60):
        kept.snapshots.write("00000", snapshot(step, scores))
    assert step_of(kept.snapshots.read_kept("00000")) == 20
    assert len(files(kept)) == 2


def test_a_copy_is_whole_at_every_moment(kept, storage, machine, monkeypatch):
    """However long a copy takes, and whatever the trial does meanwhile, it holds the best of the last that it holds."""
    machine("first")
    first = study("s", search=SearchPlan(checkpoint="best"), storage=storage.uri)
    steps, write = iter(SCORES), Storage.write

    def slowly(self: Storage, key: str, content: bytes, version: str | None) -> str:
        if "/snapshots/" in key and (step := next(steps, None)) is not None:
            first.snapshots.write("00000", snapshot(step))  # the trial reports while its states are copied
        version = write(self, key, content, version)
        last = storage.get("s/snapshots/00000.safetensors")
        if last is not None:
            reports = read_reports(last)
            best = first.checkpoint_selection.select(reports).step
            assert best == reports[-1].step or storage.get(f"s/snapshots/00000.step-{best}.safetensors") is not None
        return version

    first.journal().append(TrialStarted(trial_id="00000", params={}))
    first.snapshots.write("00000", snapshot(next(steps)))
    monkeypatch.setattr(Storage, "write", slowly)
    with Mirror(first, storage, lambda: None) as mirror:
        for _ in SCORES:
            mirror.copy()
    machine("second")
    second = fetch("s", storage)
    assert (step_of(second.snapshots.read("00000")), step_of(second.snapshots.read_kept("00000"))) == (60, 50)


# ---- damaged ---------------------------------------------------------------------------------------------------------
ENDED = b'{"event": "TrialEnded", "trial_id": "00009", "state": "FAIL", "reason": "", "at": 0}\n'


@pytest.mark.parametrize("line", [b"null\n", ENDED, b"\xff\n", b'{"event": ["Warned"], "at": 1.0}\n'])
def test_a_whole_line_that_is_no_event_is_an_error_that_names_the_place(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    StudyLog(path).append(TrialStarted(trial_id="00000", params={"rank": 8}))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(StudyError, match=f"is damaged at byte {size}", check=lambda it: "backup" in it.hint):
        StudyLog(path)


@pytest.mark.parametrize(
    ("name", "content", "use"),
    [
        ("study.json", b'{"name": "s', lambda folder: StudyFolder.open(folder.name)),
        ("space.yaml", None, lambda folder: resume(folder.name)),
        ("space.yaml", b"\xff", lambda folder: resume(folder.name)),
        ("confirmed/00000.refit.json", b"{", lambda folder: folder.confirmed.refit("00000").read()),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(name, content, use):
    folder = study("s")
    file = folder.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content) if content is not None else file.unlink()
    with pytest.raises(StudyError, match=f"must be whole, but .*/s/{name}: ", check=lambda it: "backup" in it.hint):
        use(folder)


def test_a_damaged_study_hides_no_other(store_uri, say):
    for name in ("bad", "worse", "theirs", "good"):
        study(name, store_uri)
    (studies_root() / "bad" / "study.json").write_text("{")
    (studies_root() / "worse" / "journal.jsonl").write_text("garbage\n")
    theirs = studies_root() / "theirs" / "journal.jsonl"
    theirs.mkdir()  # root may read every file, but no folder as one
    shutil.copytree(studies_root() / "good", studies_root() / "good (copy)")  # as file managers name one
    said = say("status")
    states = {row.split()[0]: row.split()[2] for row in said.ok.splitlines()[1:]}
    assert states == dict.fromkeys(("bad", "worse", "theirs"), "unreadable") | {"good": "interrupted"}
    assert "bad/study.json" in said.err
    assert "worse/journal.jsonl is damaged at byte 0" in said.err
    assert say("status", "theirs").is_error(1, f"{theirs} must be readable, but the system says: ", "owner")
    assert {done.study: done.state for done in sync()} == {
        **dict.fromkeys(("bad", "worse", "theirs"), "unreadable"),
        "good": "complete",
    }
    assert say("sync").code == 1


def test_a_folder_that_holds_a_study_of_another_name_is_refused(store_uri, say, tmp_path):
    """`resume` would train a study in the folder that its name leads to."""
    shutil.copytree(study("first", store_uri).path, studies_root() / "second")
    for use in (StudyFolder.open, resume):
        with pytest.raises(StudyError, match="/second holds study 'first'", check=lambda it: "to first" in it.hint):
            use("second")
    assert {it.study: it.state for it in study_summaries()}["second"] == "unreadable"
    assert say("studies", "rm", "second", "--force").code == 0
    assert list_studies() == ["first"]
    copy = (studies_root() / "first").rename(tmp_path / "third")
    with pytest.raises(StudyError, match=f"{copy} holds study 'first'"):
        fetch("third", Storage(str(tmp_path)))
    assert list_studies() == []


def test_a_study_of_another_format_is_refused_and_so_is_its_copy(tmp_path):
    folder, storage = study("s"), Storage(str(tmp_path))
    info = json.loads((folder.path / "study.json").read_text())
    other = json.dumps(info | {"format": STUDY_FORMAT + 1, "task": "by what it does not know"})
    (folder.path / "study.json").write_text(other)
    storage.create("s/study.json", other.encode())
    with pytest.raises(StudyError, match="`format`", check=lambda it: "launch its space again" in it.hint):
        StudyFolder.open("s")
    remove_whole(folder.path)
    with pytest.raises(StudyError, match="`format`"):
        fetch("s", storage)
    assert list_studies() == []


# ---- what it searches, and what it leads to --------------------------------------------------------------------------
TEXT = "task: sst2\nbase_model: a/b\nparameters:\n  rank: {choice: [2, 4]}\n  learning_rate: 0.001\n"
MODULES = [LinearModule("layer.0.attention.query", 8, 8)]


def test_defaults_are_those_of_the_launch(fresh_home, monkeypatch):
    space = parse_space(TEXT, source="s.yaml", folder=fresh_home)
    plan = {"task": space.task, "base_model": space.base_model, "search": space.search, "promotion": space.promotion}
    info = replace(study("first").info, name="s", space_folder=space.folder, **plan)
    folder = StudyFolder.create(info, space.text, space)
    assert list(folder.space().parameters) == ["rank", "learning_rate"], "in the order of the file: samplers draw in it"
    params = {"rank": 2, "learning_rate": 0.001}
    before = space.hyperparameters(params, MODULES, 0)
    assert folder.space() == space
    specs = dict(LoraXS.parameters)
    monkeypatch.setattr(LoraXS, "parameters", specs | {"sigma": replace(specs["sigma"], default="none")})
    common = parameters.COMMON
    monkeypatch.setitem(common, "batch_size", replace(common["batch_size"], default=1024))
    after = folder.space()
    assert after.hyperparameters(params, MODULES, 0) == before
    assert after.largest() == space.largest()


def test_a_space_reads_back_as_it_was():
    for space in map(load_space, ("movie_reviews_text", "rivals_movie_reviews")):
        assert from_json(Space, to_json(space)) == space


def hint(task: str, uri: str) -> str:
    """What the registry, which knows no such task, advises."""
    with pytest.raises(UnknownTaskError) as unknown:
        loraxs_search.pull(task, tracking_uri=uri)
    return str(unknown.value.hint)


def test_who_asks_for_a_task_is_told_what_its_study_waits_for(store_uri):
    """Studies of other tasks or registries do not count, and a damaged one hides none."""
    study("elsewhere", "http://mlflow.example:5000")
    assert "elsewhere" not in hint(TASK.name, store_uri)
    folder = study("mine", store_uri)
    (study("damaged", store_uri).path / "study.json").write_text("{cut sho")
    assert "mine" not in hint("another", store_uri)
    assert hint(TASK.name, store_uri) == "continue with `loraxs-search resume mine`"
    with folder.lock():
        assert "`loraxs-search status mine`" in hint(TASK.name, store_uri)
    folder.write_candidates([Candidate("mine", "0", TASK.name, {}, {}, 100, "data", "base")])
    assert "`loraxs-search promote mine`" in hint(TASK.name, store_uri)


def test_the_store_of_a_study_must_be_there_unless_a_search_may_make_it(fresh_home, tmp_path, monkeypatch):
    """A study that was fetched from a storage records in this home's own, which may not be made yet."""
    own, gone = f"sqlite:///{fresh_home}/mlflow.db", f"sqlite:///{tmp_path}/gone.db"
    assert study("fetched", own).store_uri() == own
    assert study("served", "http://mlflow.example:5000").store_uri() == "http://mlflow.example:5000"
    lost = study("lost", gone)
    with pytest.raises(TrackingError, match=r"study 'lost' .* must be there, but .*/gone\.db is not") as refused:
        lost.store_uri()
    assert refused.value.hint == "bring the file back", "its folder is there: no link can lead to another"
    assert not (fresh_home / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gone)
    assert lost.store_uri() == gone, "the user names it"
