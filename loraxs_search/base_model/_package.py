"""A base model carried by an installed Python distribution: as a folder, one zip file, or one GGUF file.

The distribution is read through its metadata and never imported: such packages may print, or need what is not there.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from loraxs_search.base_model._digest import file_digest
from loraxs_search.base_model._folder import WEIGHT_FILES, is_model_folder
from loraxs_search.base_model._gguf import converted_gguf
from loraxs_search.base_model._made_once import made_once
from loraxs_search.errors import BaseModelError
from loraxs_search.home import home


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
            return _unpacked(file, root)
    if gguf_files := [file for file in files if file.suffix == ".gguf"]:
        return converted_gguf(_only(gguf_files, package))
    raise BaseModelError(
        f"The package {package} must hold a model (config.json and weights, plain or in a .zip; or one .gguf), but none"
        " is in it.",
        hint="correct `package`, or leave it out to take the model from the hub",
    )


def _only(files: list[Path], package: str) -> Path:
    if len(files) > 1:
        raise BaseModelError(
            f"The package {package} must hold one GGUF file, but has {', '.join(file.name for file in files)}.",
            hint="convert the one you want to a folder with transformers, and give that as `id`",
        )
    return files[0]


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


def _unpacked(archive: Path, root: PurePosixPath) -> Path:
    final = home() / "base_models" / file_digest(archive)[:16]
    return made_once(final, lambda folder: _extract(archive, root, folder))


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
