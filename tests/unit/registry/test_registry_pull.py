from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from pathlib import Path

import pytest

import loraxs_search
from loraxs_search.errors import HomeError, IntegrityError, RegistryError, TrackingError, UsageError
from loraxs_search.manifest import folder_digest, verify
from loraxs_search.records.search import PromotionRule
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
from loraxs_search.tracking.store import connect, ensure_store

from .conftest import served


@pytest.fixture
def promoted(with_versions, tmp_path):
    """The folder of the one adapter that is registered."""
    with_versions(1)
    return tmp_path / "made" / "t0"


@pytest.fixture
def registered_files(store_uri, promoted):
    return Path(Registry(store_uri).resolve("movie-reviews").source)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _cached(home: Path) -> set[str]:
    return {path.name for path in (home / "adapters").iterdir()}


def test_a_pulled_folder_is_the_promoted_one_under_its_digest(promoted, store_uri, fresh_home):
    pulled = pull("movie-reviews", uri=store_uri)
    assert pulled == fresh_home / "adapters" / folder_digest(promoted)
    assert _content(pulled) == _content(promoted)
    assert _cached(fresh_home) == {folder_digest(promoted), "names.json"}
    assert not list(Path.cwd().iterdir())


def test_a_changed_cache_is_noticed_and_pulled_again(promoted, store_uri, fresh_home, caplog):
    pulled = pull("movie-reviews", uri=store_uri)
    assert "was changed" not in caplog.text
    (pulled / "adapter_model.safetensors").write_bytes(b"other")
    assert pull("movie-reviews", uri=store_uri) == pulled
    assert _content(pulled) == _content(promoted)
    assert "was changed" in caplog.text
    assert _cached(fresh_home) == {folder_digest(promoted), "names.json"}


FAULTS = [
    lambda f: (f / "adapter_model.safetensors").write_bytes(b"other"),
    lambda f: (f / "run.py").write_text(""),
    lambda f: [path.unlink() for path in f.iterdir() if path.is_file()],
    lambda f: (f / "README.md").write_text("x" * (2**20 + 1)),
]


def test_what_was_changed_in_the_registry_is_refused_and_nothing_is_written(
    registered_files, store_uri, fresh_home, tmp_path
):
    whole = shutil.copytree(registered_files, tmp_path / "whole")
    for fault in FAULTS:
        fault(registered_files)
        with pytest.raises(IntegrityError):
            pull("movie-reviews", uri=store_uri)
        assert _cached(fresh_home) == set()
        shutil.rmtree(registered_files)
        shutil.copytree(whole, registered_files)
    assert pull("movie-reviews", uri=store_uri)


def test_a_file_of_which_more_comes_than_was_listed_is_refused(promoted, store_uri, fresh_home, monkeypatch):
    list_files = Registry.list_files

    def list_less(store, source):
        return {name: size and size - 1 for name, size in list_files(store, source).items()}

    monkeypatch.setattr(Registry, "list_files", list_less)
    with pytest.raises(IntegrityError, match=r"manifest.json .*bytes"):
        pull("movie-reviews", uri=store_uri)
    assert _cached(fresh_home) == set()


def test_an_exchanged_manifest_is_refused_though_it_fits_its_files(registered_files, store_uri, fresh_home):
    content = json.loads((registered_files / "manifest.json").read_text())
    (registered_files / "manifest.json").write_text(json.dumps(content | {"trial_id": "t9"}))
    verify(registered_files, in_registry=True)
    with pytest.raises(IntegrityError, match="is not what was registered"):
        pull("movie-reviews", uri=store_uri)
    assert _cached(fresh_home) == set()


def test_a_link_out_of_the_registrys_folder_is_not_kept(registered_files, store_uri, fresh_home, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (registered_files / "README.md").unlink()
    (registered_files / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(RegistryError):
        pull("movie-reviews", uri=store_uri)
    assert _cached(fresh_home) == set()


def test_a_server_that_is_away_gives_what_the_name_last_meant(promoted, store_uri, fresh_home, caplog):
    pulled = pull("movie-reviews", uri=store_uri)
    names = fresh_home / "adapters" / "names.json"
    away = "http://127.0.0.1:9"
    names.write_text(names.read_text().replace(store_uri, away))
    with caplog.at_level(logging.WARNING):
        assert pull("movie-reviews", uri=away) == pulled
    assert "using the cached movie-reviews" in caplog.text
    (pulled / "README.md").write_text("other")
    with pytest.raises(TrackingError):
        pull("movie-reviews", uri=away)
    names.write_text("[not json")
    with pytest.raises(TrackingError, match="must be reachable"):
        pull("movie-reviews", uri=away)


def test_a_server_whose_database_is_away_is_one_that_is_away(promoted, store_uri, fresh_home, caplog):
    pulled = pull("movie-reviews", uri=store_uri)
    names = fresh_home / "adapters" / "names.json"

    def no_database(request):
        request.send_response(200 if request.path == "/health" else 503)
        request.send_header("Content-Length", "0")
        request.end_headers()

    with served(no_database) as away:
        names.write_text(names.read_text().replace(store_uri, away))
        assert pull("movie-reviews", uri=away) == pulled
        with pytest.raises(TrackingError, match=f"The MLflow server at {away} must answer") as unknown:
            pull("movie-reviews:7", uri=away)
        with pytest.raises(TrackingError, match="must let us read experiments") as unreadable:
            ensure_store(away)
    assert "using the cached movie-reviews" in caplog.text
    assert all("database" in str(caught.value.hint) for caught in (unknown, unreadable))


def test_what_came_whole_is_not_fetched_again(promoted, registered_files, store_uri, fresh_home):
    partial = fresh_home / "adapters" / f".pull-{folder_digest(promoted)}"
    partial.mkdir(parents=True)
    shutil.copy(promoted / "adapter_model.safetensors", partial)
    (partial / "adapter_config.json").write_bytes(b"cut sho")
    (partial / "left-over.json").write_text("{}")
    os.utime(partial / "adapter_model.safetensors", (0, 1_000_000))
    pulled = pull("movie-reviews", uri=store_uri)
    assert _content(pulled) == _content(promoted)
    assert (pulled / "adapter_model.safetensors").stat().st_mtime == 1_000_000, "not written again"
    assert _cached(fresh_home) == {folder_digest(promoted), "names.json"}


def test_a_store_that_nobody_wrote_to_is_not_asked_again(promoted, store_uri, monkeypatch):
    time.sleep(0.15)  # a younger stamp proves nothing
    pulled = pull("movie-reviews", uri=store_uri)

    def asked(*_):
        raise AssertionError("the store was asked")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "resolve", asked)
        assert pull("movie-reviews", uri=store_uri) == pulled
        with pytest.raises(AssertionError, match="was asked"):
            pull("movie-reviews:1", uri=store_uri)  # a name not resolved before


def test_a_new_champion_is_seen_at_once(promoted, store_uri, fresh_home, task, candidate, make_folder):
    time.sleep(0.15)
    pull("movie-reviews", uri=store_uri)
    for number in range(1, 6):
        own = candidate(f"t{number}", 0.8 + number / 100)
        Promoter(store_uri, "movie-reviews").promote(
            PromotionRule(), task, [own], {f"t{number}": make_folder(f"t{number}")}, True
        )
        if number > 3:  # also where the store's files are old enough for their stamp to prove something
            for path in fresh_home.glob("mlflow.db*"):
                os.utime(path, (0, time.time() - 60 + number))
        assert verify(pull("movie-reviews", uri=store_uri)).trial_id == f"t{number}"


def test_a_digest_that_could_lead_out_of_the_cache_is_refused(promoted, store_uri, fresh_home, tmp_path):
    before = {path.name for path in tmp_path.iterdir()}
    for digest in ("../../elsewhere", "..", "A" * 64, "f" * 63):
        connect(store_uri).set_model_version_tag("movie-reviews", "1", "loraxs.digest", digest)
        with pytest.raises(RegistryError, match="digest"):
            pull("movie-reviews", uri=store_uri)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert not (fresh_home / "adapters").exists() or _cached(fresh_home) == set()


@pytest.mark.parametrize("given", ["new", "empty"])
def test_a_copy_is_there_whole_or_not_at_all(promoted, store_uri, tmp_path, monkeypatch, given):
    out = tmp_path / "out" / "adapter"
    if given == "empty":
        out.mkdir(parents=True)
    loraxs_search.pull("movie-reviews")
    copyfile, copied = shutil.copyfile, []

    def copy(source, target, **how):
        if len(copied) == 2:
            Path(target).write_bytes(b"cut sho")
            raise OSError(errno.ENOSPC, "No space left on device")
        copied.append(copyfile(source, target, **how))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", copy)
        with pytest.raises(HomeError, match=f"No space left to write {out}") as full:
            loraxs_search.pull("movie-reviews", out=out)
    assert "--out" in str(full.value.hint)
    assert out.exists() is (given == "empty")
    assert not [path for path in (tmp_path / "out").rglob("*") if path != out]
    assert loraxs_search.pull("movie-reviews", out=out) == out
    assert _content(out) == _content(promoted)
    with pytest.raises(UsageError, match="new or empty"):
        loraxs_search.pull("movie-reviews", out=out)
