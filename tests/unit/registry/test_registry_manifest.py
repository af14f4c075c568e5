from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from support.sealed import seal

from loraxs_search.errors import IntegrityError
from loraxs_search.manifest import ADAPTER_FORMAT, folder_digest, verify


def test_a_sealed_folder_gives_back_its_manifest_and_sealing_again_the_same_digest(make_folder, manifest):
    folder = make_folder("t0")
    digest, sealed = folder_digest(folder), verify(folder)
    assert (sealed.task, sealed.probe) == (manifest("t0").task, manifest("t0").probe)
    assert sealed.files.keys() == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert seal(folder, manifest("t0")) == sealed
    assert folder_digest(folder) == digest
    (folder / "README.md").write_text("another card")
    seal(folder, manifest("t0"))
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


FAULTS = [
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
    for number, (fault, message) in enumerate(FAULTS):
        copy = shutil.copytree(folder, tmp_path / str(number))
        fault(copy)
        with pytest.raises(IntegrityError, match=message):
            verify(copy)


def test_a_manifest_that_names_a_file_outside_is_refused(make_folder, tmp_path):
    folder = make_folder("t0")
    (tmp_path / "made" / "outside.json").write_text("{}")
    content = json.loads((folder / "manifest.json").read_text())
    content["files"]["../outside.json"] = hashlib.sha256(b"{}").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match=r"outside\.json is missing"):
        verify(folder)


def test_a_manifest_of_another_format_is_refused_with_a_remedy(make_folder):
    folder = make_folder("t0")
    (folder / "manifest.json").write_text(json.dumps({"format": ADAPTER_FORMAT + 1}))  # the rest may be anything
    with pytest.raises(IntegrityError, match="`format`") as refused:
        verify(folder)
    assert "search again" in str(refused.value.hint)


def test_sealing_refuses_what_an_adapter_has_no_use_for(make_folder, manifest):
    folder = make_folder("t0")
    (folder / "optimizer.pt").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"optimizer\.pt"):
        seal(folder, manifest("t0"))
