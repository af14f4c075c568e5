from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from loraxs_search.base_model.locate import locate
from loraxs_search.errors import BaseModelError
from loraxs_search.records.base import BaseModelRef

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


def test_locate_needs_no_torch():
    code = "import sys, loraxs_search.base_model.locate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
