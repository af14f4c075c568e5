"""What `gc` removes and what it never does, with real files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from support.aged import DAY_S, age, base_name, pulled
from support.pages import ROOT
from support.searched_studies import Tried, confirm, searched
from support.studies import state, study

from loraxs_search.factors.store import FactorStore
from loraxs_search.home import REMOVED, in_use, mark_used, remove_whole, write_atomic
from loraxs_search.housekeeping import FOLDERS, collect
from loraxs_search.log.events import DriverStarted
from loraxs_search.records.task import Identity
from loraxs_search.records.trial import TrialState
from loraxs_search.registry.store import Registry
from loraxs_search.studies.folder import StudyFolder

MONTH_S = 30 * DAY_S


def gone(**options):
    """What is removed by a run of `gc`, relative to the home."""
    return [done.path for done in collect(MONTH_S, **options) if not done.kept]


def why(path: Path) -> str:
    (reason,) = [done.kept for done in collect(MONTH_S, dry_run=True) if done.path == path]
    return reason


def factor_file(home: Path, factors: dict[str, str]) -> Path:
    (key,) = factors
    return home / "factors" / key[:2] / f"{key}.safetensors"


# ---- what goes, and what stays ---------------------------------------------------------------------------------------
def test_what_is_needed_stays_and_all_else_goes(fresh_home, store_uri, base, factors, register, sealed, tmp_path):
    registered, finished, named, unused = (factors(seed) for seed in range(4))
    register(store_uri, base_digest=base("registered"), factors=registered)
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
        (factor_file(fresh_home, registered), "needed by t:1"),
        (bases / base_name("registered"), "needed by t:1"),
        (factor_file(fresh_home, finished), "needed by study done"),
        (bases / base_name("finished"), "needed by study done"),
        (factor_file(fresh_home, named), "needed by `pull reviews`"),
        (fresh_home / "adapters" / f"{new}.lora-r8", "needed by `pull reviews`"),
        (link, "a link leads out of the state folder"),
    ):
        assert why(path) == needed
    planned = collect(MONTH_S, dry_run=True)
    going = {done.path for done in planned if not done.kept}
    assert going == {
        *(factor_file(fresh_home, unused), bases / base_name("unused")),
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


def test_what_was_used_not_long_ago_stays(fresh_home, factors):
    path = factor_file(fresh_home, factors(0))
    age(path, days=20)
    assert why(path) == "used not long ago"
    age(path, days=40)
    assert why(path) == ""
    FactorStore().get(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), rank=4)
    assert why(path) == "used not long ago", "a search has just taken it"


# ---- what stays ------------------------------------------------------------------------------------------------------
def test_a_registry_that_does_not_answer_keeps_factors_and_bases(fresh_home, base, factors, monkeypatch):
    base("b")
    path = factor_file(fresh_home, factors(0))
    write_atomic(fresh_home / "datasets" / "tokens" / "a.safetensors", "x")
    age(fresh_home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "what is registered at http://127.0.0.1:9 is not known" in why(path)
    assert gone() == [fresh_home / "datasets" / "tokens" / "a.safetensors"]


def test_a_registry_that_is_gone_keeps_factors_and_bases(fresh_home, store_uri, factors, tmp_path):
    """As after the home was moved: its versions may need them."""
    folder = study("moved", f"sqlite:///{tmp_path}/old/mlflow.db")
    folder.journal().append(DriverStarted(since=0.0))
    folder.write_candidates([])
    path = factor_file(fresh_home, factors(0))
    age(fresh_home)
    assert "what is registered where study moved records is not known" in why(path)
    assert gone() == []


def test_what_an_unfinished_study_may_need_stays(fresh_home, store_uri, base, factors):
    base("b")
    path = factor_file(fresh_home, factors(0))
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


@pytest.mark.parametrize(
    "go_on", [lambda folder, _: folder.set_candidates_aside(), lambda folder, held: held.enter_context(folder.lock())]
)
def test_a_study_that_goes_on_while_gc_looks_keeps_its_states(go_on, done, monkeypatch):
    opened, names, held = StudyFolder.open, list[str](), contextlib.ExitStack()

    def open_late(name: str) -> StudyFolder:
        names.append(name)
        if len(names) == 2:  # the first look has found it finished
            go_on(done, held)
        return opened(name)

    monkeypatch.setattr(StudyFolder, "open", open_late)
    with held:
        assert gone() == []
    assert len(names) == 2


def test_pulled_adapters_of_removed_versions_go(fresh_home, store_uri, base, register, sealed):
    register(store_uri, base_digest=base("b"), factors={})
    (known,) = (digest for _, digest, _ in Registry(store_uri).manifests())
    meant = {}
    for digest, name in ((known, "t"), ("c" * 64, "t:9")):
        sealed(fresh_home / "adapters" / digest, factors={})
        meant[f"{store_uri} {name}"] = {"digest": digest, "version": 1}
    write_atomic(fresh_home / "adapters" / "names.json", json.dumps(meant))
    age(fresh_home)
    assert why(fresh_home / "adapters" / known) == "needed by `pull t`"
    assert {path.name for path in gone() if path.parent.name == "adapters"} == {"c" * 64}


def test_a_pulled_adapter_that_is_damaged_keeps_what_it_may_need_and_nothing_else(fresh_home, base, factors, sealed):
    digest = "a" * 64
    sealed(fresh_home / "adapters" / digest, factors={})
    (fresh_home / "adapters" / digest / "manifest.json").write_text("")
    sealed(fresh_home / "adapters" / ("c" * 64), factors={})
    pulled(fresh_home, "reviews", digest)
    path = factor_file(fresh_home, factors(0))
    age(fresh_home)
    assert why(path).startswith("what reviews, which was pulled, needs is not known: ")
    assert {path.name for path in gone()} == {"c" * 64}


def test_what_is_used_while_gc_runs_stays(fresh_home, sealed, monkeypatch):
    first, second = ("a" * 64, "b" * 64)
    for digest in (first, second):
        sealed(fresh_home / "adapters" / digest, factors={})
    age(fresh_home)

    def pulled_meanwhile(path):
        mark_used(fresh_home / "adapters" / second)
        remove_whole(path)

    monkeypatch.setattr("loraxs_search.housekeeping.remove_whole", pulled_meanwhile)
    assert [(each.path.name, each.kept) for each in collect(MONTH_S)] == [(first, ""), (second, "used just now")]
    assert [path.name for path in (fresh_home / "adapters").iterdir()] == [second]


def test_while_a_search_runs_what_it_may_use_stays(fresh_home, base, factors):
    base("b")
    path = factor_file(fresh_home, factors(0))
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
    half = [
        fresh_home / "studies" / f".new.{'1' * 32}",
        fresh_home / "base_models" / f".{'2' * 16}-bf16-1",
        fresh_home / "adapters" / f".pull-{'a' * 64}",
        fresh_home / "adapters" / f".{'a' * 64}.lora-r8",
        fresh_home / "datasets" / "tokens" / ".a.arrow.x8_kq2zz.tmp",
    ]
    for path in half:
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
    done = []
    threads = [threading.Thread(target=lambda: done.append(gone())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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
