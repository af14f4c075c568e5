"""A storage in a folder on a file system that machines share."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from loraxs_search.errors import HomeError, StorageConflictError, StorageError
from loraxs_search.home import create_atomic, home, write_atomic

HINT = "check that its share is mounted here, has room and may be used"


class SharedFolder:
    """Objects as files. It is not made: where a share is not mounted, its copy would be on this machine alone.

    Whether a file is as it was seen is looked at just before it is replaced; only `create` is one step for the system.

    Raises:
        StorageError: it is the folder of the studies themselves.
    """

    hint = HINT
    faults: tuple[type[Exception], ...] = (OSError, HomeError)

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._folder, studies = Path(uri).expanduser().absolute(), home() / "studies"
        if self._folder.resolve() == studies.resolve():
            raise StorageError(
                f"`--storage` must be another folder than that of the studies themselves, but got {uri}.",
                hint="name one beside it, on a file system that machines share",
            )

    def create(self, key: str, content: bytes) -> str | None:
        status = create_atomic(self._path(key), content)
        return None if status is None else _version(status)

    def write(self, key: str, content: bytes, version: str | None) -> str:
        path = self._path(key)
        if _version_at(path) != version:
            raise StorageConflictError(f"{path} must be as this driver left it, but another one has written it.")
        write_atomic(path, content)
        return _version_at(path) or ""

    def get(self, key: str) -> bytes | None:
        try:
            return _read(self._path(key))
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def versions(self, prefix: str) -> Mapping[str, str]:
        paths = [path for path in self._path(prefix).rglob("*") if path.is_file()]
        versions = {str(path.relative_to(self._folder)): _version_at(path) for path in paths}
        return {key: version for key, version in versions.items() if version is not None}

    def _path(self, key: str) -> Path:
        if not self._folder.is_dir():
            raise StorageError(
                f"The storage at {self._uri} must be a folder that is there, but it is not.",
                hint=f"mount the share that holds it, or if it is new: `mkdir -p {self._folder}`",
            )
        return self._folder / key


def _version_at(path: Path) -> str | None:
    """Return what tells a file from those that replace it; opened, as NFS then asks its server."""
    try:
        with path.open("rb") as file:
            return _version(os.fstat(file.fileno()))
    except FileNotFoundError:
        return None


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"  # file systems over a network may make up inode numbers


def _read(path: Path) -> bytes:
    """Read a file that another machine may replace meanwhile: NFS then takes the old one away under its reader."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    return path.read_bytes()
