"""A place that outlives a driver's machine: a folder that machines share, or a bucket."""

from __future__ import annotations

import errno
import os
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loraxs_search.errors import HomeError, StorageError
from loraxs_search.home import home, write_atomic
from loraxs_search.mlflow_uri import redact


class Storage:
    """Whole objects by key, below one address; each is replaced whole or not at all.

    Args:
        uri: A folder that is there, or `s3://bucket/prefix`; a server that is not AWS is named by AWS_ENDPOINT_URL.
            A folder is not made: where a share is not mounted, its copy would be on this machine, and its lease seen by
            nobody.

    Raises:
        StorageError: the address is malformed or not one of these.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._folder = _folder(uri) if uri.strip() and "://" not in uri else None
        if self._folder is None:
            self._files, self._root = _bucket(uri)

    def check(self) -> None:
        """See that objects can be written and deleted: a bucket that is not there answers as an empty one to readers.

        Raises:
            StorageError: they cannot.
        """
        key = f".{uuid.uuid4().hex}"
        self.put(key, b"")
        self.delete(key)

    def put(self, key: str, content: bytes) -> None:
        """Write an object.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            if self._folder is not None:
                write_atomic(self._there(self._folder) / key, content)
                return
            with self._files.open_output_stream(f"{self._root}/{key}") as stream:
                stream.write(content)
        except (OSError, HomeError) as error:
            raise self._error("writable", key, error) from error

    def get(self, key: str) -> bytes | None:
        """Return an object; None when there is none.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            if self._folder is not None:
                return _read(self._there(self._folder) / key)
            with self._files.open_input_stream(f"{self._root}/{key}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error("readable", key, error) from error

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        try:
            if self._folder is not None:
                (self._there(self._folder) / key).unlink(missing_ok=True)
            else:
                self._files.delete_file(f"{self._root}/{key}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error("writable", key, error) from error

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below `prefix`, in order; temporary files are left out.

        Raises:
            StorageError: they cannot be listed.
        """
        try:
            return sorted(key for key in self._keys(prefix) if not key.rpartition("/")[2].startswith("."))
        except OSError as error:
            raise self._error("readable", prefix, error) from error

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _keys(self, prefix: str) -> Iterator[str]:
        if self._folder is not None:
            below = (self._there(self._folder) / prefix).rglob("*")
            yield from (str(path.relative_to(self._folder)) for path in below if path.is_file())
            return
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(f"{self._root}/{prefix}", allow_not_found=True, recursive=True)
        for found in self._files.get_file_info(selector):
            if found.type == FileType.File:
                yield found.path.removeprefix(f"{self._root}/")

    def _there(self, folder: Path) -> Path:
        if not folder.is_dir():
            raise StorageError(
                f"The storage at {self.uri} must be a folder that is there, but it is not.",
                hint=f"mount the share that holds it, or if it is new: `mkdir -p {folder}`",
            )
        return folder

    def _error(self, what: str, key: str, error: Exception) -> StorageError:
        hint = _S3_HINT if self._folder is None else "check that its share is mounted here, has room and may be used"
        return StorageError(f"The storage at {self.uri} must be {what}, but {key}: {error}.", hint=hint)


_S3_HINT = (
    "check the address and the account: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role; "
    "AWS_ENDPOINT_URL for a server that is not AWS"
)


def _read(path: Path) -> bytes:
    """Read a file that another machine may replace meanwhile: NFS then takes the old one away under its reader."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    return path.read_bytes()


def _folder(uri: str) -> Path:
    folder, studies = Path(uri).expanduser().absolute(), home() / "studies"
    if folder.resolve() == studies.resolve():
        raise StorageError(
            f"`--storage` must be another folder than that of the studies themselves, but got {uri}.",
            hint="name one beside it, on a file system that machines share",
        )
    return folder


def _bucket(uri: str) -> tuple[Any, str]:
    """Return the file system and the path in it of `s3://bucket/prefix`."""
    from pyarrow.fs import S3FileSystem

    parts = urllib.parse.urlsplit(uri)
    if parts.scheme != "s3" or not parts.hostname or "@" in parts.netloc:
        raise StorageError(
            f"`--storage` must be a folder or s3://bucket/prefix, but got {redact(uri)!r}.",
            hint="other buckets that speak S3 are named by AWS_ENDPOINT_URL, the account by AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY",
        )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    files = S3FileSystem(region=region, endpoint_override=endpoint, connect_timeout=5, request_timeout=20)
    return files, "/".join([parts.netloc, *filter(None, parts.path.split("/"))])  # no name between slashes may be empty
