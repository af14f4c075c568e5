"""A place that outlives a driver's machine: a folder that machines share, or a bucket."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Protocol

from loraxs_search.errors import StorageConflictError, StorageError
from loraxs_search.studies.bucket import Bucket
from loraxs_search.studies.shared_folder import SharedFolder


class _ObjectStore(Protocol):
    """Where objects lie; `Storage` has the contract, and turns what goes wrong here into its errors."""

    hint: str
    faults: tuple[type[Exception], ...]  # what it raises where it cannot

    def create(self, key: str, content: bytes) -> str | None: ...

    def write(self, key: str, content: bytes, version: str | None) -> str: ...

    def get(self, key: str) -> bytes | None: ...

    def delete(self, key: str) -> None: ...

    def versions(self, prefix: str) -> Mapping[str, str]: ...


class Storage:
    """Whole objects by key, below one address; each is replaced whole or not at all.

    A version tells an object from those that replace it: it is for comparing only.

    Args:
        uri: A folder that is there, or `s3://bucket/prefix`; a server that is not AWS is named by AWS_ENDPOINT_URL.

    Raises:
        StorageError: the address is malformed or not one of these.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        is_folder = uri.strip() and "://" not in uri
        self._objects: _ObjectStore = SharedFolder(uri) if is_folder else Bucket(uri)

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
        """Delete an object; one that is not there is no error."""
        with self._faults("writable", key), contextlib.suppress(FileNotFoundError):
            self._objects.delete(key)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below `prefix`, in order; temporary files are left out.

        Raises:
            StorageError: they cannot be listed.
        """
        return sorted(self.versions(prefix))

    def versions(self, prefix: str) -> dict[str, str]:
        """Return the versions of the objects below `prefix`; temporary files are left out.

        Raises:
            StorageError: they cannot be listed.
        """
        with self._faults("readable", prefix):
            versions = self._objects.versions(prefix)
        return {key: version for key, version in versions.items() if not key.rpartition("/")[2].startswith(".")}

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
