"""An adapter folder in another form: plain LoRA for servers that know nothing else, also as GGUF, or a whole model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Literal

import torch

from loraxs_search.errors import UsageError, one_of
from loraxs_search.home import alone, disk_faults, remove_whole, write_atomic
from loraxs_search.methods import Conversion, get_method
from loraxs_search.methods.loading import load_adapter_folder, read_manifest

Form = Literal["lora", "merged", "gguf"]
MergedDtype = Literal["float32"]
_LAYOUT = "3"  # raise when a conversion writes other files: those that are kept are made again


def converted(folder: Path, form: Form, *, rank: int | None = None, dtype: MergedDtype | None = None) -> Path:
    """Return an adapter in another form, made once and kept beside `folder`.

    It appears whole, and is made again if its files were changed.

    `lora` is the same function as plain LoRA, exactly: stock PEFT loads it, and vLLM's filesystem resolver takes it.
    Its README.md says how with the task's labels: a config.json would have transformers look for the base beside it.
    The tokenizer is there too.
    `merged` is the base with the update added to its weights, with its tokenizer: plain transformers load it. A warning
    says where the base's type rounds much of the update away.
    `gguf` is plain LoRA for llama.cpp, with a Modelfile for Ollama.

    Args:
        folder: A verified adapter folder.
        rank: Rank that `lora` is padded to, where a server wants one for all; None means the adapter's own.
        dtype: Type that `merged` has its weights in; None means the base's own.
    Raises:
        UsageError: `rank` is below the adapter's own, or it or `dtype` is given with another form; the adapter's method
            has no such form, or llama.cpp no place for it.
        BaseModelError, FactorMismatchError: the adapter cannot be loaded here.
    """
    if rank is not None and form != "lora":
        raise UsageError(f"`--rank` must go with --format lora, but got {form!r}.")
    if dtype is not None and form != "merged":
        raise UsageError(f"`--dtype` must go with --format merged, but got {form!r}.")
    manifest = read_manifest(folder)
    conversion = _conversion(manifest.hyperparameters.method, form)
    which = f"-r{rank}" if rank is not None else f"-{dtype}" if dtype is not None else ""
    target = folder.with_name(f"{folder.name}.{form}{which}")
    note = target.with_name(f"{target.name}.json")
    if _is_whole(target, note):
        return target
    building = target.with_name(f".{target.name}")
    with disk_faults(target), alone(building):
        if _is_whole(target, note):  # another one was quicker
            return target
        shutil.rmtree(building, ignore_errors=True)  # of one that was killed
        building.mkdir()
        try:
            model = load_adapter_folder(folder, dtype=torch.float32 if dtype else None)
            conversion(model, manifest, building, rank)
            write_atomic(note, json.dumps(_digests(building), indent=1))
            remove_whole(target)
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return target


def _conversion(name: str, form: Form) -> Conversion:
    method = get_method(name)
    if form not in method.conversions:
        known = one_of(["native", *method.conversions], form)
        raise UsageError(
            f"`--format` must be one of: {known} for an adapter of method {method.name}, but got {form!r}.",
            hint="leave --format out: native is the adapter as it was trained",
        )
    return method.conversions[form]


def _is_whole(folder: Path, note: Path) -> bool:
    try:
        return bool(json.loads(note.read_bytes()) == _digests(folder))
    except (OSError, ValueError):  # one of them is not there or damaged
        return False


def _digests(folder: Path) -> dict[str, str]:
    digests = {"layout": _LAYOUT}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):  # several chat templates are a folder
        with path.open("rb") as file:
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
