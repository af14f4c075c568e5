"""What every export format keeps to, and what the package promises to each; see `methods/export/_base.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pytest

from loraxs_search.base_model.locate import locate
from loraxs_search.errors import UsageError
from loraxs_search.manifest import read_manifest
from loraxs_search.methods import METHODS
from loraxs_search.methods._base import NATIVE, Method
from loraxs_search.methods.export._base import ExportFormat, ExportOptions, LoadedAdapter
from loraxs_search.methods.export.folder import FORMATS, check_options, converted
from loraxs_search.records.task import BaseModelRef


class ToyFormat(ExportFormat):
    """Of a distribution: the update's largest number, in a text."""

    name: ClassVar[str] = "toy"
    options: ClassVar[frozenset[str]] = frozenset({"rank"})

    @classmethod
    def fits(cls, method: Method) -> bool:
        return method.name == "lora-xs"

    def write(self, adapter: LoadedAdapter, folder: Path, options: ExportOptions) -> None:
        largest = max(float((b @ a).abs().max()) for a, b in adapter.method.plain_lora(adapter.peft).pairs.values())
        (folder / "README.md").write_text(f"{adapter.manifest.task.name}, {largest}, {options.rank}")


@pytest.fixture(autouse=True)
def toy_format(monkeypatch):
    monkeypatch.setitem(FORMATS._entries, ToyFormat.name, ToyFormat)


@pytest.fixture
def adapter(tiny_base, in_warm_home, make_adapter, tmp_path):
    """A LoRA-XS adapter with a head."""
    target = "bert.encoder.layer.1.attention.self.query"
    changes = {"rank": 2, "target_modules": (target,), "init_std": 0.5}
    folder: Path = make_adapter(tmp_path / "adapter", locate(BaseModelRef(id=str(tiny_base))), **changes)
    return folder


@pytest.mark.parametrize("form", ["lora", "merged", "gguf", "onnx", "toy"])
def test_a_declaration_is_whole_and_options_of_others_are_refused(form):
    assert form in FORMATS.names()
    entry = FORMATS.get(form)
    assert entry.name == form != NATIVE
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", form)
    assert entry.options <= {field.name for field in fields(ExportOptions)}
    assert any(entry.fits(METHODS.get(name)()) for name in METHODS.names())
    assert entry.layout >= 1
    for name, options in {
        "rank": ExportOptions(rank=8),
        "dtype": ExportOptions(dtype="float32"),
        "precision": ExportOptions(precision="int8"),
    }.items():
        if name in entry.options:
            check_options(form, options)
            continue
        with pytest.raises(UsageError, match=f"`--{name}` must go with --format "):
            check_options(form, options)


def test_declarations_are_read_without_torch():
    read = "from loraxs_search.methods.export.folder import FORMATS; FORMATS.importable()"
    subprocess.run([sys.executable, "-c", f"import sys; {read}; assert 'torch' not in sys.modules"], check=True)


def test_formats_and_values_that_an_option_does_not_have_are_refused():
    with pytest.raises(UsageError, match="`--format`"):
        check_options("tflite", ExportOptions())
    values: tuple[tuple[str, str, Any], ...] = (
        *(("merged", "dtype", "bfloat16"), ("onnx", "precision", "int4"), ("toy", "rank", True)),
        *(("lora", "rank", "8"), ("lora", "rank", 0)),
    )
    for form, name, value in values:
        with pytest.raises(UsageError, match=f"`--{name}` must be .*, but got {value!r}"):
            check_options(form, ExportOptions(**{name: value}))


@pytest.mark.parametrize("form", ["lora", "merged", "toy"])
def test_an_export_is_whole_and_written_once(form, adapter, monkeypatch):
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    entry = FORMATS.get(form)
    made = converted(adapter, form)
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    assert "README.md" in files
    times = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    assert converted(adapter, form) == made
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == times
    (made / "README.md").write_text("changed")
    assert {path.name: path.read_bytes() for path in converted(adapter, form).iterdir()} == files
    monkeypatch.setattr(entry, "layout", entry.layout + 1)
    (made / "README.md").touch()
    assert converted(adapter, form) == made
    assert (made / "README.md").stat().st_mtime_ns != times["README.md"], "another layout is written again"
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


def test_nothing_is_left_of_an_export_that_fails(adapter, monkeypatch):
    def fails(_: ExportFormat, adapter: LoadedAdapter, folder: Path, options: ExportOptions) -> None:
        (folder / "half").write_bytes(b"cut sho")
        raise UsageError("full")

    with monkeypatch.context() as patch, pytest.raises(UsageError, match="full"):
        patch.setattr(FORMATS.get("merged"), "write", fails)
        converted(adapter, "merged")
    assert [path for path in adapter.parent.iterdir() if path.is_dir()] == [adapter]


def test_a_format_fits_methods_not_adapters_alone():
    for method, forms in (
        ("full", []),
        ("head-only", ["merged"]),
        ("lora-xs", ["lora", "merged", "gguf", "onnx", "toy"]),
    ):
        assert [name for name, entry in FORMATS.importable().items() if entry.fits(METHODS.get(method)())] == forms


def test_a_distributions_format_has_the_adapter_and_the_options(adapter):
    name, largest, rank = (converted(adapter, "toy", ExportOptions(rank=4)) / "README.md").read_text().split(", ")
    assert (name, rank) == (read_manifest(adapter).task.name, "4")
    assert float(largest) > 0
