"""Exports of an adapter folder, each made once and kept beside it."""

from __future__ import annotations

import contextlib
import json
import shutil
from numbers import Integral
from pathlib import Path
from typing import Any, get_args

from loraxs_search.errors import UsageError, one_of, unknown_name
from loraxs_search.home import disk_faults, exclusive, file_sha256, remove_whole, write_atomic
from loraxs_search.methods import method_of
from loraxs_search.methods.export._base import ExportFormat, ExportOptions, LoadedAdapter, MergedDtype, OnnxPrecision
from loraxs_search.methods.export.gguf import GGUF
from loraxs_search.methods.export.models import Merged, PlainLoRAFolder
from loraxs_search.methods.export.onnx import ONNX
from loraxs_search.methods.names import NATIVE
from loraxs_search.plugins import EntryPoints

FORMATS: EntryPoints[type[ExportFormat]] = EntryPoints(
    "--format", "loraxs_search.export_formats", PlainLoRAFolder, Merged, GGUF, ONNX
)
_NO_OPTIONS = ExportOptions()
_VALUES: dict[str, tuple[str, ...]] = {"dtype": get_args(MergedDtype), "precision": get_args(OnnxPrecision)}


def check_options(form: str, options: ExportOptions) -> None:
    """Refuse options that a format does not take, values that they do not have, and unknown formats.

    Raises:
        UsageError: as said.
    """
    if form not in (names := [NATIVE, *FORMATS.names()]):
        raise UsageError(unknown_name("--format", form, names), hint="see `loraxs-search pull --help`")
    taken = frozenset[str]() if form == NATIVE else FORMATS.get(form).options
    for name in options.given.keys() - taken:
        takers = one_of([other for other, entry in FORMATS.importable().items() if name in entry.options])
        raise UsageError(f"`--{name}` must go with --format {takers}, but got {form!r}.")
    for name, known in _VALUES.items():
        if (value := options.given.get(name)) is not None and value not in known:
            raise UsageError(f"`--{name}` must be one of: {one_of(known, value)}, but got {value!r}.")
    rank: Any = options.rank
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 1):
        raise UsageError(f"`--rank` must be a whole number from 1, but got {rank!r}.")


def converted(folder: Path, form: str, options: ExportOptions = _NO_OPTIONS) -> Path:
    """Return an adapter in another format, made once and kept beside `folder`.

    It appears whole, and is made again if its files were changed.

    Args:
        folder: A verified adapter folder.
        options: That passed `check_options`.
    Raises:
        UsageError: the adapter has no such format.
        BaseModelError: the adapter cannot be loaded here.
    """
    import torch

    from loraxs_search.methods.loading import load_adapter_folder, read_manifest

    manifest = read_manifest(folder)
    method = method_of(manifest.hyperparameters)
    entry = FORMATS.get(form)
    if not entry.fits(method):
        known = [NATIVE, *(name for name, other in FORMATS.importable().items() if other.fits(method))]
        raise UsageError(
            f"`--format` must be one of: {one_of(known, form)} for an adapter of method"
            f" {method.name}, but got {form!r}.",
            hint="leave --format out: native is the adapter as it was trained",
        )
    # Exports of one format are told apart by their options: `-r8`, `-float32`, `-int8`.
    which = "".join(f"-r{value}" if name == "rank" else f"-{value}" for name, value in options.given.items())
    target = folder.with_name(f"{folder.name}.{form}{which}")
    note = target.with_name(f"{target.name}.json")
    building = target.with_name(f".{target.name}")
    with disk_faults(target), exclusive(building):
        with contextlib.suppress(OSError, ValueError):  # one of them is not there or damaged
            if json.loads(note.read_bytes()) == _digests(target, entry):
                return target
        shutil.rmtree(building, ignore_errors=True)  # of one that was killed
        building.mkdir()
        try:
            model = load_adapter_folder(folder, dtype=getattr(torch, options.dtype) if options.dtype else None)
            entry().write(LoadedAdapter(model, manifest, method), building, options)
            write_atomic(note, json.dumps(_digests(building, entry), indent=1))
            remove_whole(target)
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return target


def _digests(folder: Path, entry: type[ExportFormat]) -> dict[str, str]:
    digests = {"layout": str(entry.layout)}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):  # several chat templates are a folder
        digests[path.relative_to(folder).as_posix()] = file_sha256(path)
    return digests
