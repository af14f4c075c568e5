"""Files of a registry: sealed, pulled whole or not at all, measured as they come, and what they need of factors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from support.toys import promote, seal

import loraxs_search
from loraxs_search.errors import HomeError, IntegrityError, RegistryError, TrackingError, UsageError
from loraxs_search.factors.store import FactorStore, write_factors
from loraxs_search.home import factor_path
from loraxs_search.manifest import ADAPTER_FORMAT, folder_digest, verify
from loraxs_search.registry.factor_sets import factors_at, install_factors
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
from loraxs_search.tracking.store import connect, ensure_store

from .conftest import TASK, content


@contextlib.contextmanager
def served(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Have a server answer so; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def promoted(with_versions, tmp_path):
    """The folder of the one adapter that is registered."""
    with_versions(1)
    return tmp_path / "made" / "t0"


@pytest.fixture
def registered_files(store_uri, promoted):
    return Path(Registry(store_uri).resolve("movie-reviews").source)


def cached(home: Path) -> set[str]:
    return {path.name for path in (home / "adapters").iterdir()}


def test_a_pulled_folder_is_the_promoted_one_under_its_digest(promoted, store_uri, fresh_home):
    pulled = pull("movie-reviews", uri=store_uri)
    assert pulled == fresh_home / "adapters" / folder_digest(promoted)
    assert content(pulled) == content(promoted)
    assert cached(fresh_home) == {folder_digest(promoted), "names.json"}
    assert not list(Path.cwd().iterdir())


def test_a_changed_cache_is_noticed_and_pulled_again(promoted, store_uri, fresh_home, caplog):
    pulled = pull("movie-reviews", uri=store_uri)
    assert "was changed" not in caplog.text
    (pulled / "adapter_model.safetensors").write_bytes(b"other")
    assert pull("movie-reviews", uri=store_uri) == pulled
    assert content(pulled) == content(promoted)
    assert "was changed" in caplog.text
    assert cached(fresh_home) == {folder_digest(promoted), "names.json"}


def exchange(folder: Path) -> None:
    """Put in a manifest that fits its files, and is not what was registered."""
    known = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(known | {"trial_id": "t9"}))
    verify(folder, in_registry=True)


def link(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("/etc/hostname")


FAULTS = [
    lambda f: (f / "adapter_model.safetensors").write_bytes(b"other"),
    lambda f: (f / "run.py").write_text(""),
    lambda f: [path.unlink() for path in f.iterdir() if path.is_file()],
    lambda f: (f / "README.md").write_text("x" * (2**20 + 1)),
    exchange,
    link,
]


def test_what_was_changed_there_is_refused_and_nothing_is_written(registered_files, store_uri, fresh_home, tmp_path):
    whole = shutil.copytree(registered_files, tmp_path / "whole")
    for fault in FAULTS:
        fault(registered_files)
        with pytest.raises(RegistryError):
            pull("movie-reviews", uri=store_uri)
        assert cached(fresh_home) == set()
        shutil.rmtree(registered_files)
        shutil.copytree(whole, registered_files)
    assert pull("movie-reviews", uri=store_uri)


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
    assert content(pulled) == content(promoted)
    assert (pulled / "adapter_model.safetensors").stat().st_mtime == 1_000_000, "not written again"
    assert cached(fresh_home) == {folder_digest(promoted), "names.json"}


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


def test_a_new_champion_is_seen_at_once(promoted, store_uri, fresh_home, make_folder):
    time.sleep(0.15)
    pull("movie-reviews", uri=store_uri)
    for number in range(1, 6):
        promote(make_folder(f"t{number}"), store_uri)
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
    assert not (fresh_home / "adapters").exists() or cached(fresh_home) == set()


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
    assert content(out) == content(promoted)
    with pytest.raises(UsageError, match="new or empty"):
        loraxs_search.pull("movie-reviews", out=out)


def test_a_server_that_sends_without_end_is_cut_off(tmp_path):
    sent, chunk, max_chunks = [], bytes(2**16), 2**9

    def endless(request):
        """Send chunk after chunk and never say how many, as long as somebody reads."""
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        with contextlib.suppress(OSError):
            while len(sent) < max_chunks:
                request.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                sent.append(1)
            request.wfile.write(b"0\r\n\r\n")

    with (
        served(endless) as address,
        pytest.raises(IntegrityError, match=r"README.md must have at most 100,000 bytes, but .*http://127"),
    ):
        Registry(address).fetch_file("mlflow-artifacts:/1/models/m/artifacts", "README.md", tmp_path, 100_000)
    assert (tmp_path / "README.md").stat().st_size <= 100_000
    assert len(sent) < max_chunks


def test_what_mlflows_client_fetched_is_measured(store_uri, tmp_path):
    source = tmp_path / "artifacts"
    source.mkdir()
    (source / "README.md").write_bytes(bytes(11))
    (tmp_path / "fetched").mkdir()
    with pytest.raises(IntegrityError, match=r"README.md must have at most 10 bytes, but 11 came from"):
        Registry(store_uri).fetch_file(str(source), "README.md", tmp_path / "fetched", 10)
    assert Registry(store_uri).fetch_file(str(source), "README.md", tmp_path / "fetched", 11).read_bytes() == bytes(11)


def test_a_sealed_folder_gives_back_its_manifest_and_sealing_again_the_same_digest(make_folder):
    folder = make_folder("t0")
    digest, sealed = folder_digest(folder), verify(folder)
    assert (sealed.task, sealed.trial_id) == (TASK, "t0")
    assert sealed.files.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert seal(folder, sealed) == sealed
    assert folder_digest(folder) == digest
    (folder / "README.md").write_text("a card")
    seal(folder, sealed)
    assert folder_digest(folder) != digest


def test_a_flipped_byte_of_any_file_is_noticed(make_folder):
    folder = make_folder("t0")
    for path in sorted(folder.iterdir()):
        if path.name == "manifest.json":
            continue
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            flipped = bytearray(whole)
            flipped[position] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(IntegrityError, match=path.name):
                verify(folder)
        path.write_bytes(whole)
    verify(folder)


def name_outside(folder: Path) -> None:
    (folder.parent / "outside.json").write_text("{}")
    known = json.loads((folder / "manifest.json").read_text())
    known["files"]["../outside.json"] = hashlib.sha256(b"{}").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(known))


DAMAGE = [
    (name_outside, r"outside\.json is missing"),
    (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    (lambda f: (f / "extra.json").write_text("{}"), "extra.json is not listed"),
    (lambda f: (f / "code.py").write_text(""), "`file suffix` must be one of"),
    (lambda f: (f / "link.json").symlink_to("/etc/hostname"), "must be a plain file"),
    (lambda f: (f / "README.md").write_text("x" * (2**20 + 1)), "README.md must have at most 1,048,576 bytes"),
    (lambda f: (f / ".hidden.json").write_text("{}"), "must be a plain name"),
    (lambda f: (f / "manifest.json").write_text(f'{{"format": {ADAPTER_FORMAT}}}'), "is not an adapter manifest"),
    (lambda f: (f / "manifest.json").write_text("not json"), "is not an adapter manifest"),
    (lambda f: (f / "manifest.json").unlink(), "is missing: this is no adapter folder"),
]


def test_what_does_not_belong_is_named(make_folder, tmp_path):
    folder = make_folder("t0")
    for number, (fault, message) in enumerate(DAMAGE):
        copy = shutil.copytree(folder, tmp_path / str(number))
        fault(copy)
        with pytest.raises(IntegrityError, match=message):
            verify(copy)


def test_a_manifest_of_another_format_is_refused_with_a_remedy(make_folder):
    folder = make_folder("t0")
    (folder / "manifest.json").write_text(json.dumps({"format": ADAPTER_FORMAT + 1}))  # the rest may be anything
    with pytest.raises(IntegrityError, match="`format`", check=lambda it: "search again" in it.hint):
        verify(folder)


def test_sealing_refuses_what_an_adapter_has_no_use_for(make_folder):
    folder = make_folder("t0")
    sealed = verify(folder)
    (folder / "optimizer.pt").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"optimizer\.pt"):
        seal(folder, sealed)


# ---- factor sets -----------------------------------------------------------------------------------------------------
WEIGHT = torch.randn(12, 10, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Go to another machine: another home."""
    return lambda name="elsewhere": monkeypatch.setenv("LORAXS_HOME", str(tmp_path / name))


@pytest.fixture
def registered_factors(store_uri, make_folder):
    """Key and checksum of the factors of an adapter that is registered, and their file there."""
    key, checksum = FactorStore().identify(WEIGHT, rank=4)
    promote(make_folder("t0", factors={key: checksum}), store_uri)
    tags = Registry(store_uri).experiment_tags("loraxs-search factors")
    (source,) = (value for name, value in tags.items() if name.startswith("mlflow.loraxs.factors."))
    return key, checksum, Path(source) / f"{key}-{checksum[:16]}.safetensors"


def test_pulling_brings_the_factors_that_lack_and_they_are_used(registered_factors, elsewhere, store_uri):
    key, checksum, _ = registered_factors
    elsewhere()
    assert not factors_at(key, checksum, unchecked=True)
    pull("movie-reviews", uri=store_uri)
    assert factors_at(key, checksum, unchecked=True)
    assert factors_at(key, checksum) is None, "nobody has checked it yet"
    assert FactorStore().identify(WEIGHT, rank=4) == (key, checksum)


def test_a_set_is_one_for_all_adapters_and_only_grows(registered_factors, store_uri, make_folder):
    key, first, file = registered_factors
    second_key, second = FactorStore().identify(WEIGHT.T.contiguous(), rank=4)
    promote(make_folder("t1", factors={key: first, second_key: second}), store_uri)
    assert {path.name for path in file.parent.iterdir()} == {file.name, f"{second_key}-{second[:16]}.safetensors"}
    assert [model.name for model in connect(store_uri).search_registered_models()] == ["movie-reviews"]


def test_a_file_that_a_killed_promoter_left_short_is_sent_again(registered_factors, elsewhere, store_uri, make_folder):
    key, checksum, file = registered_factors
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    promote(make_folder("t1", factors={key: checksum}), store_uri)
    assert file.read_bytes() == whole
    elsewhere()
    pull("movie-reviews", uri=store_uri)
    assert factors_at(key, checksum, unchecked=True)


def test_factors_that_are_not_what_they_say_are_not_kept(registered_factors, elsewhere, store_uri):
    key, checksum, file = registered_factors
    whole = file.read_bytes()
    for change in (-1, 30):
        damaged = bytearray(whole)
        damaged[change] ^= 1
        file.write_bytes(damaged)
        elsewhere(f"elsewhere{change}")
        with pytest.raises(IntegrityError):
            pull("movie-reviews", uri=store_uri)
        assert not factors_at(key, checksum, unchecked=True)
    known = FactorStore().get(WEIGHT, rank=4)  # turned as another machine may find them
    write_factors(file, replace(known, left=-known.left, right=-known.right))
    elsewhere("another")
    with pytest.raises(IntegrityError, match="must have checksum"):
        pull("movie-reviews", uri=store_uri)


def test_a_key_or_a_checksum_that_could_lead_elsewhere_is_refused(tmp_path):
    key, known = FactorStore().identify(WEIGHT, rank=4)
    content = factor_path(key).read_bytes()
    for odd in ("", "../../etc", "A" * 64):
        with pytest.raises(IntegrityError, match="factor key"):
            factors_at(odd, known)
        with pytest.raises(IntegrityError, match="factor checksum"):
            factors_at(key, odd)
        for unchecked in (False, True):
            with pytest.raises(IntegrityError, match="factor key"):
                install_factors(odd, content, tmp_path, unchecked=unchecked)


def test_a_promoter_without_the_files_says_so_and_promotes(make_folder, store_uri, caplog):
    promote(make_folder("t0", factors={"0" * 64: "1" * 64}), store_uri)
    assert "1 factor files of org/base are not on this machine" in caplog.text
    assert pull("movie-reviews", uri=store_uri).is_dir()
