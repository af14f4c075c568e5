"""A place that outlives a driver's machine: a folder on a file system that machines share, or a bucket."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from loraxs_search.errors import HomeError, StorageConflictError, StorageError, shortened
from loraxs_search.home import create_atomic, home, paths_under, write_atomic
from loraxs_search.paths import user_path
from loraxs_search.studies.buckets import Bucket

_FOLDER_HINT = "check that its share is mounted here, has room and may be used"


class _SharedFolder:
    """Objects as files. It is not made: where a share is not mounted, its copy would be on this machine only.

    Whether a file is as it was seen is looked at just before it is replaced; only `create` is one step for the system.

    Raises:
        StorageError: no folder can have that name, or it is that of the studies themselves.
    """

    hint = _FOLDER_HINT
    faults: tuple[type[Exception], ...] = (OSError, HomeError)

    def __init__(self, uri: str) -> None:
        try:
            folder = user_path(uri)
        except ValueError as error:
            raise StorageError(
                f"`--storage` must be a folder or a bucket's address, but got {shortened(uri)}: {error}.",
                hint="name a folder by its whole path",
            ) from None
        self._folder = Path(uri).expanduser().absolute()  # links stay: an automounter's lead to what may move
        self.uri = str(self._folder)
        if folder == (home() / "studies").resolve():
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
        paths = [path for path in paths_under(self._path(prefix)) if path.is_file()]
        versions = {str(path.relative_to(self._folder)): _version_at(path) for path in paths}
        return {key: version for key, version in versions.items() if version is not None}

    def keys(self, prefix: str) -> Iterable[str]:
        return self.versions(prefix)

    def _path(self, key: str) -> Path:
        if not self._folder.is_dir():
            raise StorageError(
                f"The storage at {self.uri} must be a folder that is there, but it is not.",
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


def _is_temporary(key: str) -> bool:
    return key.rpartition("/")[2].startswith(".")


class _ObjectStore(Protocol):
    """Where objects lie; `Storage` has the contract, and turns what goes wrong here into its errors."""

    uri: str  # an absolute path, if it is a folder
    hint: str
    faults: tuple[type[Exception], ...]  # what it raises where it cannot

    def create(self, key: str, content: bytes) -> str | None: ...

    def write(self, key: str, content: bytes, version: str | None) -> str: ...

    def get(self, key: str) -> bytes | None: ...

    def delete(self, key: str) -> None: ...

    def versions(self, prefix: str) -> Mapping[str, str]: ...

    def keys(self, prefix: str) -> Iterable[str]: ...


class Storage:
    """Whole objects by key, below one address; each is replaced whole or not at all.

    A version tells an object from those that replace it: it is for comparing only.

    Args:
        uri: A folder that is there, `s3://bucket/prefix`, `az://container/prefix` or `gs://bucket/prefix`;
            AWS_ENDPOINT_URL and AZURE_STORAGE_ENDPOINT name a server that is not the cloud's own.

    Raises:
        StorageError: the address is malformed or not one of these.
    """

    def __init__(self, uri: str) -> None:
        is_folder = uri.strip() and "://" not in uri
        self._objects: _ObjectStore = _SharedFolder(uri) if is_folder else Bucket(uri)
        self.uri = self._objects.uri

    def check(self) -> None:
        """See that objects can be written and deleted, and that what another driver has written is not replaced.

        A bucket that is not there answers as an empty one to readers.

        Raises:
            StorageError: they cannot.
        """
        key = f".{uuid.uuid4().hex}"
        version = self.create(key, b"")
        try:
            is_safe = self.create(key, b"") is None and self._keeps_what_is_newer(key, version)
        finally:
            self.delete(key)
        if not is_safe:
            raise StorageError(
                f"The storage at {self.uri} must refuse to replace what another driver has written, but it did.",
                hint="its server must know conditional writes (If-None-Match and If-Match)",
            )

    def create(self, key: str, content: bytes) -> str | None:
        """Make an object and return its version; None when there is one: of many at once one succeeds.

        Raises:
            StorageError: it cannot be written.
        """
        with self._faults("writable", key):
            return self._objects.create(key, content)

    def write(self, key: str, content: bytes, version: str | None) -> str:
        """Replace an object of that version, None for none, and return its new one.

        A bucket compares and writes in one step; in a folder a moment lies between.

        Raises:
            StorageConflictError: another one is there.
            StorageError: it cannot be written.
        """
        with self._faults("writable", key):
            return self._objects.write(key, content, version)

    def get(self, key: str) -> bytes | None:
        """Return an object; None when there is none.

        Raises:
            StorageError: it cannot be read.
        """
        with self._faults("readable", key):
            return self._objects.get(key)

    def delete(self, key: str) -> None:
        """Delete an object; a missing object is no error."""
        with self._faults("writable", key), contextlib.suppress(FileNotFoundError):
            self._objects.delete(key)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below `prefix`, in order; temporary files are left out.

        Raises:
            StorageError: they cannot be listed.
        """
        with self._faults("readable", prefix):
            return sorted(key for key in self._objects.keys(prefix) if not _is_temporary(key))

    def versions(self, prefix: str) -> dict[str, str]:
        """Return the versions of the objects below `prefix`; temporary files are left out.

        Raises:
            StorageError: they cannot be listed.
        """
        with self._faults("readable", prefix):
            versions = self._objects.versions(prefix)
        return {key: version for key, version in versions.items() if not _is_temporary(key)}

    def _keeps_what_is_newer(self, key: str, version: str | None) -> bool:
        self.write(key, b"newer", version)
        try:
            self.write(key, b"late", version)
        except StorageConflictError:
            return True
        return False

    @contextlib.contextmanager
    def _faults(self, what: str, key: str) -> Iterator[None]:
        try:
            yield
        except self._objects.faults as error:
            reason = str(error).partition("\n")[0].partition(": <?xml")[0].rstrip(".")
            raise StorageError(
                f"The storage at {self.uri} must be {what}, but {key}: {reason}.", hint=self._objects.hint
            ) from error
