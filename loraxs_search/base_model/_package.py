"""A base model carried by an installed Python distribution, as a folder or as one zip file.

The distribution is read through its metadata and never imported: such packages may print, or need what is not there.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import time
import uuid
import zipfile
from pathlib import Path, PurePosixPath

from loraxs_search.base_model._digest import file_digest
from loraxs_search.base_model._folder import WEIGHT_FILES, is_model_folder
from loraxs_search.errors import BaseModelError
from loraxs_search.home import disk_faults, home

_ABANDONED_AFTER_S = 3600.0


def package_folder(package: str) -> Path:
    """Return the model folder of an installed distribution, unpacking its zip file on first use.

    Raises:
        importlib.metadata.PackageNotFoundError: no such distribution is installed.
        BaseModelError: it holds no model, or its archive is damaged.
        HomeError: the archive cannot be unpacked.
    """
    files = _files(package)
    for file in files:
        if file.name == "config.json" and is_model_folder(file.parent):
            return file.parent
    for file in files:
        if file.suffix == ".zip" and (root := _model_root(file)) is not None:
            return _unpacked(file, root)
    raise BaseModelError(
        f"The package {package} must hold a model (config.json and weights, plain or in a .zip), but none is in it.",
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


def _unpacked(archive: Path, root: PurePosixPath) -> Path:
    """Unpack once: to a private folder beside the final one, then renamed. Of two at once, the first one stays."""
    final = home() / "base_models" / file_digest(archive)[:16]
    if is_model_folder(final):
        return final
    with disk_faults(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        work = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        work.mkdir()
        try:
            _extract(archive, root, work)
            if not is_model_folder(final):
                shutil.rmtree(final, ignore_errors=True)  # somebody removed files from it
            with contextlib.suppress(OSError):  # not empty: another process was first
                work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return final


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


def _sweep(final: Path) -> None:
    """Remove what unpackings that were killed have left behind."""
    for left in final.parent.glob(f".{final.name}.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(left, ignore_errors=True)


def _damaged(archive: Path, error: Exception) -> BaseModelError:
    return BaseModelError(
        f"{archive} must be a zip file, but it is damaged: {error}.", hint="reinstall the package that holds it"
    )
