"""A place that outlives a driver's machine: a folder on a file system that machines share, or a bucket."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraxs_search.errors import HomeError, StorageConflictError, StorageError, first_line, shortened
from loraxs_search.home import create_atomic, home, paths_under, user_path, write_atomic
from loraxs_search.mlflow_uri import parts_of, shown

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import AzureStore, GCSStore, S3Store

_HINTS = {
    "s3": "check the address and the account: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role (`aws "
    "configure export-credentials --format env` prints those of a profile); AWS_ENDPOINT_URL for a server that is not "
    "AWS, which must know conditional writes",
    "az": "check the address and the account: AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, "
    "AZURE_STORAGE_SAS_TOKEN or a service principal; AZURE_STORAGE_ENDPOINT for a server that is not Azure",
    "gs": "check the address and the account: a file that GOOGLE_APPLICATION_CREDENTIALS names, or the machine's role",
}
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
}


_AT_ONCE = 16  # requests for the generations of objects


class _Bucket:
    """Objects below `s3://bucket/prefix`, `az://container/prefix` or `gs://bucket/prefix`.

    A version is an ETag without its quotes, which Azure leaves out where it lists. Google compares generations instead,
    and its listings have none: each object is asked for its own.

    Raises:
        StorageError: the address is malformed or not one of these, or it lacks an account.
    """

    def __init__(self, uri: str) -> None:
        import obstore

        self.uri, self._client = uri, obstore
        self._store, self.hint = _store(uri)
        self._by_generation = uri.startswith("gs:")
        self.faults: tuple[type[Exception], ...] = (OSError, obstore.exceptions.BaseError)

    def create(self, key: str, content: bytes) -> str | None:
        with contextlib.suppress(StorageConflictError):
            return self.write(key, content, None)
        return None

    def write(self, key: str, content: bytes, version: str | None) -> str:
        mode: Literal["create"] | UpdateVersion = "create"
        if version is not None:
            mode = {"version": version} if self._by_generation else {"e_tag": f'"{version}"'}
        try:
            return self._version(self._client.put(self._store, key, content, mode=mode, use_multipart=False))
        except (self._client.exceptions.AlreadyExistsError, self._client.exceptions.PreconditionError) as error:
            raise StorageConflictError(
                f"{key} must be as this driver left it, but another one has written it."
            ) from error

    def get(self, key: str) -> bytes | None:
        try:
            return bytes(self._client.get(self._store, key).bytes())
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        self._client.delete(self._store, key)

    def keys(self, prefix: str) -> Mapping[str, Any]:
        pages: Iterable[Iterable[Mapping[str, Any]]] = self._client.list(self._store, prefix or None)
        return {str(item["path"]): item for page in pages for item in page}

    def versions(self, prefix: str) -> Mapping[str, str]:
        listed = self.keys(prefix)
        if self._by_generation:

            def head(key: str) -> Mapping[str, Any]:
                try:
                    known: Mapping[str, Any] = self._client.head(self._store, key)
                except FileNotFoundError:  # deleted meanwhile
                    return {}
                return known

            with ThreadPoolExecutor(_AT_ONCE) as callers:
                listed = dict(zip(listed, callers.map(head, listed), strict=True))
        return {key: self._version(item) for key, item in listed.items() if item}

    def _version(self, seen: Mapping[str, Any]) -> str:
        return str(seen["version" if self._by_generation else "e_tag"] or "").removeprefix('"').removesuffix('"')


def _store(uri: str) -> tuple[S3Store | AzureStore | GCSStore, str]:
    """Return where an address leads, and what to do where it does not."""
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, S3Store

    parts = parts_of(uri)
    if parts is None or parts.scheme not in _HINTS or not parts.hostname or "@" in parts.netloc:
        raise StorageError(
            f"`--storage` must be a folder, or s3://, az:// or gs://BUCKET/PREFIX, but got {shown(uri)}.",
            hint="other buckets that speak S3 are named by AWS_ENDPOINT_URL, the account by AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY",
        )
    names = list(filter(None, parts.path.split("/")))  # none between slashes may be empty
    if re.search(r"[?#\x00-\x1f\x7f]", uri) or {".", ".."} & set(names):
        got = shown(re.sub(r"(?s)([?#]).*", r"\1...", uri))  # a query may be a signature
        raise StorageError(
            f"`--storage` must have no ?, #, control character or part . or .., but got {got}.",
            hint="name only the bucket and a prefix; the environment names the account",
        )
    hint, endpoint = _HINTS[parts.scheme], ""  # the server that the environment names in place of the cloud's own
    if name := next((name for name in _ENDPOINTS[parts.scheme] if os.environ.get(name)), None):
        endpoint = os.environ[name]
        server = parts_of(endpoint)
        is_server = server is not None and server.scheme in ("http", "https") and bool(server.hostname)
        if not (is_server and "@" not in endpoint and endpoint.split() == [endpoint]):
            # obstore would panic at it, and print it in each error
            raise StorageError(f"{name} must be http(s)://SERVER, but is {shown(endpoint)}.", hint=hint)
    options: dict[str, Any] = {
        "prefix": "/".join(names) or None,
        "client_options": {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=60),
        },
        "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=20)},
    }
    config: Any = {"endpoint": endpoint} if endpoint else {}
    try:
        if parts.scheme == "gs":
            return GCSStore(parts.netloc, **options), hint
        if parts.scheme == "az":
            return AzureStore(parts.netloc, config=config, **options), hint
        config["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return S3Store(parts.netloc, config=config, **options), hint
    except BaseError as error:
        message = f"The storage at {uri} must have an account, but: {first_line(error)}."
        raise StorageError(message, hint=hint) from error


class _SharedFolder:
    """Objects as files. It is not made: where a share is not mounted, its copy would be on this machine only.

    Whether a file is as it was seen is looked at just before it is replaced; only `create` is one step for the system.

    Raises:
        StorageError: no folder can have that name, or it is that of the studies themselves.
    """

    hint = "check that its share is mounted here, has room and may be used"
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
        for is_last in (False, True):  # another machine may replace a file: NFS takes the old one away under its reader
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError:
                return None
            except OSError as error:
                if is_last or error.errno != errno.ESTALE:
                    raise
        return None

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def keys(self, prefix: str) -> Iterable[str]:
        paths = (path for path in paths_under(self._path(prefix)) if path.is_file())
        return [str(path.relative_to(self._folder)) for path in paths if not path.name.startswith(".")]

    def versions(self, prefix: str) -> Mapping[str, str]:
        versions = {key: _version_at(self._folder / key) for key in self.keys(prefix)}
        return {key: version for key, version in versions.items() if version is not None}

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
        self._objects = _SharedFolder(uri) if is_folder else _Bucket(uri)
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
            is_safe = self.create(key, b"") is None
            if is_safe:
                self.write(key, b"newer", version)
                with contextlib.suppress(StorageConflictError):
                    self.write(key, b"late", version)
                    is_safe = False
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
            return sorted(self._objects.keys(prefix))

    def versions(self, prefix: str) -> dict[str, str]:
        """Return the versions of the objects below `prefix`; temporary files are left out.

        Raises:
            StorageError: they cannot be listed.
        """
        with self._faults("readable", prefix):
            return dict(self._objects.versions(prefix))

    @contextlib.contextmanager
    def _faults(self, what: str, key: str) -> Iterator[None]:
        try:
            yield
        except self._objects.faults as error:
            reason = str(error).partition("\n")[0].partition(": <?xml")[0].rstrip(".")
            raise StorageError(
                f"The storage at {self.uri} must be {what}, but {key}: {reason}.", hint=self._objects.hint
            ) from error
