"""What `gc` removes and what it never does; removing a study: whole or not at all, and never unrecorded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pages import ROOT
from support.studies import DAY_S, TASK, Tried, age, base_name, confirm, mirrored_study, pulled, searched, state, study
from support.toys import adapter, promote
from support.tracked import Tracked

import loraxs_search
from loraxs_search.errors import StorageError, StudyError
from loraxs_search.factors.store import FactorStore
from loraxs_search.home import REMOVED, file_lock, home, in_use, mark_used, remove_whole, write_atomic
from loraxs_search.housekeeping import FOLDERS, collect, remove_study
from loraxs_search.log.events import DriverStarted
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import Identity
from loraxs_search.records.trial import TrialState
from loraxs_search.registry.store import Registry
from loraxs_search.reports.study_status import study_summaries
from loraxs_search.studies.folder import StudyFolder, list_studies
from loraxs_search.studies.lease import Lease
from loraxs_search.studies.storage import Storage
from loraxs_search.tracking.store import connect

MONTH_S = 30 * DAY_S


def gone() -> list[Path]:
    """Run `gc`, and return what is removed."""
    return [done.path for done in collect(MONTH_S) if not done.kept]


def why(path: Path) -> str:
    (reason,) = [done.kept for done in collect(MONTH_S, dry_run=True) if done.path == path]
    return reason


def factor_file(known: dict[str, str]) -> Path:
    (key,) = known
    return home() / "factors" / key[:2] / f"{key}.safetensors"


def base(name: str) -> str:
    """Make an unpacked base model, long unused, and return the digest of its weights."""
    folder = home() / "base_models" / base_name(name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content := f"weights of {name}".encode() * 100)
    age(folder)
    return hashlib.sha256(content).hexdigest()


def factors(seed: int) -> dict[str, str]:
    """Make the factor file of a weight, long unused, and return its key and checksum."""
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    key, checksum = FactorStore().identify(weight, rank=4)
    age(home() / "factors")
    return {key: checksum}


def sealed(folder: Path, study: str = "s", *, base_digest: str = "b" * 64, **others: Any) -> Path:
    """Write a sealed adapter that stands on a base and factors."""
    return adapter(folder, "00000", task=TASK, study=study, base_digest=base_digest, **{"factors": {}, **others})


# ---- what goes, and what stays ---------------------------------------------------------------------------------------
def test_what_is_needed_stays_and_all_else_goes(fresh_home, store_uri, tmp_path):
    registered, finished, named, unused = (factors(seed) for seed in range(4))
    promote(sealed(tmp_path / "promoted", base_digest=base("registered"), factors=registered), store_uri)
    digest = base("finished")
    done = searched("done", [Tried({"rank": 2}, 0.8)], identity=Identity(digest, "data"))
    sealed(done.adapter_path("00000"), "done", base_digest=digest, factors=finished)
    base("unused")
    new, old = ("a" * 64, "c" * 64)
    for pulled_digest in (new, old):
        sealed(fresh_home / "adapters" / pulled_digest, factors=named if pulled_digest == new else {})
        write_atomic(fresh_home / "adapters" / f"{pulled_digest}.lora-r8" / "adapter_config.json", "{}")
        write_atomic(fresh_home / "adapters" / f"{pulled_digest}.lora-r8.json", "{}")
    pulled(fresh_home, "reviews", new)
    rows = [f"datasets/glue/sst2/0.0.0/c0ffee/{name}" for name in ("dataset_info.json", "glue-train.arrow")]
    others = ["datasets/tokens/a.safetensors", *rows, f"assets/dd/{'d' * 64}.safetensors"]
    own = [  # what people keep in the home
        *("studies/.git/config", "studies/done/snapshots/notes.md", "studies/done/clones/notes.md"),
        *("studies/done/.notes/day", "adapters/.DS_Store", "base_models/.venv/bin", "datasets/.cache.tmp"),
        *("base_models/my-model/config.json", "datasets/mine/tickets.csv", "datasets/gold.parquet"),
        *("factors/mine.safetensors", "assets/mine.safetensors"),
    ]
    for name in (*others, *own):
        write_atomic(fresh_home / name, "x" * 5000)
    write_atomic(tmp_path / "elsewhere" / "a.arrow", "x")
    link = fresh_home / "assets" / "dd" / f"{'e' * 64}.safetensors"
    link.symlink_to(tmp_path / "elsewhere" / "a.arrow")
    (fresh_home / "datasets" / "folders").symlink_to(tmp_path / "elsewhere")
    age(tmp_path), age(fresh_home)
    bases = fresh_home / "base_models"
    for path, needed in (
        (factor_file(registered), "needed by t:1"),
        (bases / base_name("registered"), "needed by t:1"),
        (factor_file(finished), "needed by study done"),
        (bases / base_name("finished"), "needed by study done"),
        (factor_file(named), "needed by `pull reviews`"),
        (fresh_home / "adapters" / f"{new}.lora-r8", "needed by `pull reviews`"),
        (link, "a link leads out of the state folder"),
    ):
        assert why(path) == needed
    planned = collect(MONTH_S, dry_run=True)
    going = {done.path for done in planned if not done.kept}
    assert going == {
        *(factor_file(unused), bases / base_name("unused")),
        *(fresh_home / "adapters" / name for name in (old, f"{old}.lora-r8", f"{old}.lora-r8.json")),
        *(fresh_home / name for name in others),
    }
    assert all(path.exists() for path in going), "a dry run removes nothing"
    assert sum(done.num_bytes for done in planned if not done.kept) >= 5 * 4096
    assert set(gone()) == going
    assert not any(path.exists() for path in going)
    assert all((fresh_home / name).is_file() for name in (*own, "mlflow.db"))
    assert (tmp_path / "elsewhere" / "a.arrow").read_text() == "x"
    assert gone() == []


def test_what_was_used_not_long_ago_stays(fresh_home):
    path = factor_file(factors(0))
    age(path, days=20)
    assert why(path) == "used not long ago"
    age(path, days=40)
    assert why(path) == ""
    FactorStore().get(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), rank=4)
    assert why(path) == "used not long ago", "a search has just taken it"


# ---- what stays ------------------------------------------------------------------------------------------------------
def test_a_registry_that_is_gone_or_does_not_answer_keeps_factors_and_bases(
    fresh_home, store_uri, tmp_path, monkeypatch
):
    base("b")
    folder = study("moved", f"sqlite:///{tmp_path}/old/mlflow.db")  # as after the home was moved
    folder.journal().append(DriverStarted(since=0.0))
    folder.write_candidates([])
    path = factor_file(factors(0))
    write_atomic(tokens := fresh_home / "datasets" / "tokens" / "a.safetensors", "x")
    age(fresh_home)
    assert "what is registered where study moved records is not known" in why(path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "what is registered at http://127.0.0.1:9 is not known" in why(path)
    assert gone() == [tokens]


def test_what_an_unfinished_study_may_need_stays(fresh_home, store_uri):
    base("b")
    path = factor_file(factors(0))
    folder = searched("open", [Tried({"rank": 2}, 0.8)], finished=False)
    folder.snapshots.write("00000", state("00000"))
    age(fresh_home)
    assert gone() == []
    assert why(path) == "needed by study open, which is not finished"
    (folder.path / "study.json").write_text("{")
    assert why(path) == "needed by study open, which is not finished", "what a damaged one needs is not known"


def test_states_of_a_finished_study_go_but_those_that_may_be_chosen_when_it_is_extended(fresh_home, store_uri):
    stopped = Tried({"rank": 8}, 0.7, state=TrialState.PRUNED)
    folder = searched("done", [stopped, Tried({"rank": 4}, 0.9), Tried({"rank": 2}, 0.8)])
    confirm(folder, "00001", [0.9, 0.8])
    for trial in ("00000", "00001", "00002"):
        folder.snapshots.write(trial, state(trial))
    write_atomic(folder.path / "tune" / "state.json", "{}")
    age(fresh_home)
    snapshots = folder.path / "snapshots"
    for trial in ("00001", "00002"):
        assert why(snapshots / f"{trial}.safetensors") == "needed by study done, which may be extended"
    assert gone() == [snapshots / "00000.safetensors", folder.path / "tune"]
    assert folder.journal().records.keys() == {"00000", "00001", "00002"}


@pytest.fixture
def done(fresh_home, store_uri):
    """A finished study with the state of a trial that was stopped early."""
    folder = searched("done", [Tried({"rank": 2}, 0.8, state=TrialState.PRUNED)])
    folder.snapshots.write("00000", state("00000"))
    age(fresh_home)
    return folder


def test_a_study_without_its_journal_or_that_somebody_works_on_keeps_its_states(done):
    """Which of them are of complete trials is not known."""
    with done.lock():
        assert gone() == []
    journal = done.journal_path.rename(done.path / "aside")
    assert gone() == []
    journal.rename(done.journal_path)
    assert gone() == [done.path / "snapshots" / "00000.safetensors"]


@pytest.mark.parametrize("is_locked", [True, False])
def test_a_study_that_goes_on_while_gc_looks_keeps_its_states(is_locked, done, monkeypatch):
    opened, names, held = StudyFolder.open, list[str](), contextlib.ExitStack()

    def open_late(name: str) -> StudyFolder:
        names.append(name)
        if len(names) == 2:  # the first look has found it finished
            held.enter_context(done.lock()) if is_locked else done.set_candidates_aside()
        return opened(name)

    monkeypatch.setattr(StudyFolder, "open", open_late)
    with held:
        assert gone() == []
    assert len(names) == 2


def test_pulled_adapters_of_removed_versions_go(fresh_home, store_uri, tmp_path):
    promote(sealed(tmp_path / "promoted", base_digest=base("b")), store_uri)
    (known,) = (digest for _, digest, _ in Registry(store_uri).manifests())
    meant = {}
    for digest, name in ((known, "t"), ("c" * 64, "t:9")):
        sealed(fresh_home / "adapters" / digest)
        meant[f"{store_uri} {name}"] = {"digest": digest, "version": 1}
    write_atomic(fresh_home / "adapters" / "names.json", json.dumps(meant))
    age(fresh_home)
    assert why(fresh_home / "adapters" / known) == "needed by `pull t`"
    assert {path.name for path in gone() if path.parent.name == "adapters"} == {"c" * 64}


def test_a_pulled_adapter_that_is_damaged_keeps_what_it_may_need_and_nothing_else(fresh_home):
    digest = "a" * 64
    sealed(fresh_home / "adapters" / digest)
    (fresh_home / "adapters" / digest / "manifest.json").write_text("")
    sealed(fresh_home / "adapters" / ("c" * 64))
    pulled(fresh_home, "reviews", digest)
    path = factor_file(factors(0))
    age(fresh_home)
    assert why(path).startswith("what reviews, which was pulled, needs is not known: ")
    assert {path.name for path in gone()} == {"c" * 64}


def test_what_is_used_while_gc_runs_stays(fresh_home, monkeypatch):
    first, second = ("a" * 64, "b" * 64)
    for digest in (first, second):
        sealed(fresh_home / "adapters" / digest)
    age(fresh_home)

    def pulled_meanwhile(path):
        mark_used(fresh_home / "adapters" / second)
        remove_whole(path)

    monkeypatch.setattr("loraxs_search.housekeeping.remove_whole", pulled_meanwhile)
    assert [(each.path.name, each.kept) for each in collect(MONTH_S)] == [(first, ""), (second, "used just now")]
    assert [path.name for path in (fresh_home / "adapters").iterdir()] == [second]


def test_while_a_search_runs_what_it_may_use_stays(fresh_home):
    base("b")
    path = factor_file(factors(0))
    sealed_folder = fresh_home / "adapters" / ("c" * 64)
    write_atomic(sealed_folder / "README.md", "old")
    age(fresh_home)
    with in_use(), in_use():
        assert why(path) == "may be needed by a search that is at work on this machine"
        assert gone() == [sealed_folder]
    assert path in gone()


# ---- what killed processes leave -------------------------------------------------------------------------------------
def test_leftovers_go_after_a_day_and_what_was_being_removed_at_once(fresh_home, store_uri):
    study("kept")
    names = [f"studies/.new.{'1' * 32}", f"base_models/.{'2' * 16}-bf16-1", f"adapters/.pull-{'a' * 64}"]
    names += [f"adapters/.{'a' * 64}.lora-r8", "datasets/tokens/.a.arrow.x8_kq2zz.tmp"]
    for path in (half := [fresh_home / name for name in names]):
        write_atomic(path if path.suffix == ".tmp" else path / "part", "x")
    write_atomic(fresh_home / "datasets" / f"{REMOVED}1" / "part", "x")
    assert gone() == [fresh_home / "datasets" / f"{REMOVED}1"]
    assert why(half[0]) == "needed by a process that may still be making it"
    age(fresh_home)
    assert set(gone()) == set(half)
    assert (fresh_home / "studies" / "kept" / "study.json").is_file()


def test_killed_in_the_middle_the_next_one_finishes(fresh_home, monkeypatch):
    names = [hashlib.sha256(bytes([i])).hexdigest() for i in range(6)]
    for name in names:
        write_atomic(fresh_home / "adapters" / name / "README.md", "old")
    age(fresh_home)
    renamed, whole = list[Path](), shutil.rmtree

    def dying(path, **options):
        renamed.append(path)
        if len(renamed) == 3:
            raise KeyboardInterrupt
        whole(path, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("loraxs_search.home.shutil.rmtree", dying)
        collect(MONTH_S)
    left = [path.name for path in (fresh_home / "adapters").iterdir()]
    assert sorted(name for name in left if not name.startswith(REMOVED)) == sorted(names)[3:], "whole, or renamed"
    assert sum(name.startswith(REMOVED) for name in left) == 1
    collect(MONTH_S)
    assert list((fresh_home / "adapters").iterdir()) == []


def test_two_at_once_remove_each_item_once(fresh_home):
    for i in range(40):
        write_atomic(fresh_home / "adapters" / hashlib.sha256(bytes([i])).hexdigest() / "README.md", "old")
    age(fresh_home)
    with ThreadPoolExecutor(2) as pool:
        done = [each.result() for each in [pool.submit(gone) for _ in range(2)]]
    assert sorted(map(len, done)) == [0, 40]
    assert list((fresh_home / "adapters").iterdir()) == []


# ---- the contract ----------------------------------------------------------------------------------------------------
STAYS = {".home-id", "mlflow.db", "artifacts", "drafts", "test_set_uses"}  # no kind may name them


def test_every_place_that_the_package_writes_to_is_of_a_kind_or_stays():
    source = "\n".join(path.read_text() for path in (ROOT / "loraxs_search").rglob("*.py"))
    written = set(re.findall(r"(?<!Path\.)\bhome\(\) / [\"\']([\w.-]+)", source))
    assert "factors" in written
    assert written <= {*FOLDERS} | STAYS
    assert not {*FOLDERS} & STAYS


# ---- removing a study -----------------------------------------------------------------------------------------------
AT_WORK = "watch it with `loraxs-search status reviews`"


def recorded(folder: StudyFolder, uri: str) -> StudyFolder:
    """Have MLflow know the study and one of its trials."""
    with Tracked(folder.name, folder.path, uri, "t", folder.info.study_id) as tracker:
        tracker.search_started("task: t", SearchPlan())
        tracker.trial_started("00000", {"rank": 4})
        tracker.trial_finished("00000", TrialState.COMPLETE)
        tracker.search_finished("FINISHED")
        assert not tracker.drain()
    return folder


def runs(uri: str) -> int:
    client = connect(uri)
    experiment = client.get_experiment_by_name("t")
    return 0 if experiment is None else len(client.search_runs([experiment.experiment_id]))


def test_a_study_goes_and_mlflow_keeps_its_runs_unless_they_are_to_go(store_uri):
    folder = recorded(searched("reviews", [Tried({"rank": 2}, 0.8)]), store_uri)
    other = recorded(study("other", store_uri), store_uri)
    dry = remove_study("reviews", dry_run=True)
    assert folder.path.is_dir()
    assert remove_study("reviews") == dry
    assert dry.num_bytes > 1000
    assert list_studies() == [other.name]
    assert runs(store_uri) == 4
    with pytest.raises(StudyError) as unknown:
        remove_study("reviews")
    assert "loraxs-search status" in str(unknown.value.hint)
    assert remove_study("other", runs=True, dry_run=True).num_runs == 2
    assert runs(store_uri) == 4
    assert remove_study("other", runs=True).num_runs == 2
    assert runs(store_uri) == 2
    study("reviews")


def test_the_run_of_a_registered_version_stays(store_uri):
    recorded(study("reviews", store_uri), store_uri)
    client = connect(store_uri)
    experiment = client.get_experiment_by_name("t").experiment_id
    (trial,) = client.search_runs([experiment], "tags.trial_id = '00000'")
    client.create_registered_model("t")
    client.create_model_version("t", "file:/nowhere", run_id=trial.info.run_id)
    removed = remove_study("reviews", runs=True)
    assert (removed.num_runs, removed.kept_runs) == (0, ("t:1",))
    assert runs(store_uri) == 2, "its own, and that of its search, below which it stands"


def test_one_whose_records_wait_is_refused(store_uri):
    folder = study("reviews", "http://127.0.0.1:9")
    tracker = Tracked("reviews", folder.path, "http://127.0.0.1:9", "t")
    tracker.search_started("task: t", SearchPlan())
    tracker.close(0.0)
    with pytest.raises(StudyError) as refused:
        remove_study("reviews")
    assert "loraxs-search sync reviews" in refused.value.hint
    assert folder.path.is_dir()
    remove_study("reviews", force=True)
    assert not folder.path.exists()


def test_one_that_another_machine_works_on_is_refused(store_uri, fresh_home, tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    folder = mirrored_study(fresh_home, storage)
    with monkeypatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(tmp_path / "another"))
        lease = Lease(storage, folder.name)
        lease.take()
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.2):
            lease.renew()

    with ThreadPoolExecutor(1) as heart, contextlib.ExitStack() as at_the_end:
        at_the_end.callback(ended.set)
        heart.submit(beat)
        with pytest.raises(StudyError) as refused:
            remove_study(folder.name)
    assert "taken over" in str(refused.value.hint)
    assert folder.path.is_dir()
    lease.release()
    assert remove_study(folder.name).storage == storage.uri


def test_drivers_elsewhere_are_kept_out_until_it_is_gone(store_uri, fresh_home, tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    folder = mirrored_study(fresh_home, storage)

    def is_let_go() -> bool:
        return bool(json.loads(storage.get(storage.keys("s/lease")[-1]) or b"")["released"])

    def removed(path):
        assert not is_let_go()
        remove_whole(path)
        assert not is_let_go()

    monkeypatch.setattr("loraxs_search.housekeeping.remove_whole", removed)
    remove_study(folder.name)
    assert is_let_go()
    assert not folder.path.exists()


def test_a_study_whose_storage_is_gone_goes_on_request_and_says_what_stays(store_uri, fresh_home, tmp_path):
    """As after a bucket was deleted, or its credentials were lost."""
    (share := tmp_path / "share").mkdir()
    folder = mirrored_study(fresh_home, Storage(str(share)))
    share.rename(tmp_path / "unmounted")
    with pytest.raises(StorageError) as refused:
        remove_study(folder.name)
    assert "--force" in str(refused.value.hint)
    assert folder.path.is_dir()
    removed = remove_study(folder.name, force=True)
    assert (removed.storage, removed.unasked) == (str(share), refused.value.message)
    assert not folder.path.exists()


@pytest.mark.parametrize("content", [None, "{"])
def test_a_study_that_cannot_be_read_is_listed_and_goes_on_request(content, store_uri):
    """Without study.json: it was removed while another command wrote into it, or a fetch was cut short."""
    folder, other = study("reviews"), study("other")
    (folder.path / "study.json").unlink() if content is None else (folder.path / "study.json").write_text(content)
    (summary,) = (it for it in study_summaries() if it.problem)
    assert summary.study == "reviews"
    with pytest.raises(StudyError):
        remove_study("reviews")
    with file_lock(folder.path / "study.lock"), pytest.raises(StudyError):
        remove_study("reviews", force=True)
    assert remove_study("reviews", force=True, dry_run=True).unread
    assert folder.path.is_dir()
    assert remove_study("reviews", force=True).unread
    assert not folder.path.exists()
    assert [it.study for it in study_summaries()] == [other.name]
    study("reviews")


def test_force_removes_nothing_that_is_no_study_and_no_link(store_uri, tmp_path):
    folder = study("reviews", store_uri)
    for name in ("..", ".", "", "nothing"):
        with pytest.raises(StudyError):
            remove_study(name, force=True)
    assert list_studies() == ["reviews"]
    folder.path.rename(tmp_path / "elsewhere")
    folder.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StudyError) as refused:
        remove_study("reviews")
    assert refused.value.hint == "remove it by hand"
    assert (tmp_path / "elsewhere" / "study.json").is_file()


def test_a_study_that_promote_decides_about_is_neither_removed_nor_taken_up(store_uri, monkeypatch):
    """`promote` writes into the study: half of it would come back."""
    folder = searched("reviews", [Tried({"rank": 2}, 0.8)])
    refused = []

    def decide(*_, **__):
        for use in (lambda: remove_study("reviews"), lambda: folder.lock().__enter__()):
            with pytest.raises(StudyError) as busy:
                use()
            refused.append(busy.value.hint)
        raise StudyError("decided")

    monkeypatch.setattr("loraxs_search.registry.changes.Promoter.promote", decide)
    with pytest.raises(StudyError, match="decided"):
        loraxs_search.promote("reviews")
    assert refused == [AT_WORK] * 2
    with folder.lock(), pytest.raises(StudyError) as busy:
        loraxs_search.promote("reviews")
    assert busy.value.hint == AT_WORK
