"""An adapter folder's `manifest.json`: what the adapter is, what it fits, and its files.

It lists the sha256 of every other file, so that a changed, missing or added one is noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraxs_search.errors import IntegrityError
from loraxs_search.home import disk_faults, file_sha256
from loraxs_search.records.adapter import ClassReport, ReferenceLogits
from loraxs_search.records.codec import Scalar, from_json, to_json
from loraxs_search.records.search import Baseline, OperatingPoint, Refit, SliceScore
from loraxs_search.records.task import BaseModelRef, BaseSetup, Task
from loraxs_search.records.trial import AdapterSize, Hyperparameters

MANIFEST = "manifest.json"
MAX_BYTES = {".json": 16 * 2**20, ".md": 2**20, ".safetensors": 4 * 2**30}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
MLMODEL = "MLmodel"
# Beside the adapter in the registry, for MLflow alone: `mlflow_model` writes these, but the last, which MLflow writes
# whenever it loads a version from a folder of this machine.
MLFLOW_FILES = frozenset(
    {
        *(MLMODEL, "conda.yaml", "python_env.yaml", "requirements.txt"),
        *("input_example.json", "serving_input_example.json", "registered_model_meta"),
    }
)
_EVIDENCE = "evidence"  # a folder: answers to the test rows


ADAPTER_FORMAT = 1  # of a manifest and a registered version; rises only when an older reader would read wrongly


@dataclass(frozen=True)
class Manifest:
    """`manifest.json` of an adapter folder: what it is, what it fits, where it came from.

    Args:
        files: File name to sha256 of every other file in the folder.
        versions: Package name to version at training time.
        refits: The same recipe from other seeds.
        base_bytes: Size of the base's weights, for comparison.
        lora_parameters: What plain LoRA trains on the same modules at the same rank.
        factors: Key of every factor file that R needs, to the checksum of its numbers.
        baselines: What simple models reach on the same rows.
        start_from: `name` and `digest` of the adapter that its training started from; None if it started anew.
        kept_step: The step that it is of, where a study keeps the best one; None if it is the last.
        lineage: Id of the trial whose params its own was added with; empty if there is none.
        ends: The tokens that end an answer that it writes, as the tokenizer names them.
        setup: Its base's.
        slices: The finalist's scores on slices of the test rows, where its task has some.
        by_class: The finalist's scores by class, where its task has labels.
        operating_points: The finalist's, where answers have a probability.
    """

    task: Task
    base_model: BaseModelRef
    base_digest: str
    data_fingerprint: str
    study: str
    trial_id: str
    params: Mapping[str, Scalar]
    hyperparameters: Hyperparameters
    validation_metrics: Mapping[str, float]
    test_metrics: Mapping[str, float]
    size: AdapterSize
    probe: ReferenceLogits
    versions: Mapping[str, str]
    created_at: str
    files: Mapping[str, str] = field(default_factory=dict)
    refits: tuple[Refit, ...] = ()
    base_bytes: int = 0
    lora_parameters: int = 0
    factors: Mapping[str, str] = field(default_factory=dict)
    baselines: tuple[Baseline, ...] = ()
    format: int = ADAPTER_FORMAT
    kept_step: int | None = None
    start_from: Mapping[str, str] | None = None
    lineage: str = ""
    ends: tuple[str, ...] = ()
    setup: BaseSetup | None = None
    slices: tuple[SliceScore, ...] = ()
    by_class: ClassReport | None = None
    operating_points: tuple[OperatingPoint, ...] = ()


def sealed(files: Mapping[str, bytes], manifest: Manifest) -> dict[str, bytes]:
    """Return the files of an adapter folder with `manifest.json`, which has the sha256 of each, among them.

    Raises:
        IntegrityError: a file is of a kind or size that is not taken.
    """
    for name, content in files.items():
        check_file(name, len(content))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    text = to_json(dataclasses.replace(manifest, files=digests), indent=2) + "\n"
    return {**files, MANIFEST: text.encode()}


def lies_beside(name: str, is_dir: bool) -> bool:
    """Whether an entry of a version's files in the registry lies beside the adapter, and is not part of it."""
    return is_dir if name == _EVIDENCE else name in MLFLOW_FILES and not is_dir


def verify(folder: Path, *, in_registry: bool = False, digest: str | None = None) -> Manifest:
    """Check every file of `folder` against its manifest, and return the manifest.

    Args:
        in_registry: Whether the folder holds a version as the registry does, with what `lies_beside` the adapter.
        digest: Its content address, where that is known.
    Raises:
        IntegrityError: a file differs, is missing, is not listed, or is of a kind or size that is not taken.
    """
    manifest, present = read_manifest(folder, digest), dict[str, Path]()
    for path in sorted(folder.iterdir()):
        if path.name == MANIFEST or (in_registry and lies_beside(path.name, path.is_dir())):
            continue
        _check_plain(path, path.lstat())
        check_file(path.name, path.stat().st_size)
        present[path.name] = path
    for name in sorted(present.keys() | manifest.files.keys()):
        place = folder / name
        if name not in present:
            raise IntegrityError(f"{place} is missing: the manifest lists it.", hint=_HINT)
        if name not in manifest.files:
            raise IntegrityError(f"{place} is not listed in the manifest.", hint=_HINT)
        actual, listed = file_sha256(place), manifest.files[name]
        if actual != listed:
            raise IntegrityError(f"{place} must have sha256 {listed[:16]}..., but got {actual[:16]}...", hint=_HINT)
    return manifest


def read_manifest(folder: Path, digest: str | None = None) -> Manifest:
    """Return the manifest of `folder`, checking nothing but its digest, where that is known.

    Raises:
        IntegrityError: there is none, it is another one, or not one that this version reads.
    """
    path = folder / MANIFEST
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IntegrityError(
            f"{path} is missing: this is no adapter folder.", hint="`loraxs-search pull TASK` makes one"
        ) from error
    _check_plain(path, status)
    check_file(path.name, status.st_size)
    if digest is not None and (actual := folder_digest(folder)) != digest:
        raise IntegrityError(
            f"{folder} must have digest {digest[:16]}..., but got {actual[:16]}...: its manifest was exchanged.",
            hint=_HINT,
        )
    with disk_faults(path):
        content = path.read_bytes()
    try:
        check_format(from_json(dict[str, Any], content).get("format"), str(path))
        return from_json(Manifest, content)
    except ValueError as error:  # pydantic's ValidationError is one
        raise IntegrityError(f"{path} is not an adapter manifest: {error}", hint="pull the adapter again") from error


def check_format(found: int | None, place: str) -> None:
    """Refuse an adapter that is described in another form than this version reads.

    Raises:
        IntegrityError: it is.
    """
    if found != ADAPTER_FORMAT:
        raise IntegrityError(
            f"`format` must be {ADAPTER_FORMAT}, but got {found} in {place}.",
            hint="use the version of loraxs-search that made the adapter, or search again with this one",
        )


def folder_digest(folder: Path) -> str:
    """Return the content address of a sealed folder: the sha256 of its manifest, which names every other file's."""
    return file_sha256(folder / MANIFEST)


def check_file(name: str, num_bytes: int) -> None:
    """Refuse a file that an adapter folder cannot hold, before anything is read from it.

    Raises:
        IntegrityError: a path that could leave the folder, an unknown suffix, or more bytes than that kind may have.
    """
    if not _NAME.fullmatch(name):
        raise IntegrityError(f"`file name` must be a plain name, but got {name!r}.", hint=_HINT)
    limit = MAX_BYTES.get(Path(name).suffix)
    if limit is None:
        known = ", ".join(sorted(MAX_BYTES))
        raise IntegrityError(f"`file suffix` must be one of {known}, but got {name!r}.", hint=_HINT)
    if num_bytes > limit:
        raise IntegrityError(f"{name} must have at most {limit:,} bytes, but got {num_bytes:,}.", hint=_HINT)


_HINT = "do not use this folder; pull the adapter again"


def _check_plain(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise IntegrityError(f"{path} must be a plain file: no folders, no links.", hint=_HINT)
