"""Pulling an adapter by name into a content-addressed cache: verified, atomic, quick when it is there."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from pathlib import Path, PurePosixPath

from loraxs_search.errors import IntegrityError, TrackingError
from loraxs_search.home import disk_faults, ensure_dir, home, write_atomic
from loraxs_search.mlflow_uri import redact
from loraxs_search.registry._client import speaking
from loraxs_search.registry.manifest import check_file, folder_digest, verify
from loraxs_search.registry.store import RegisteredAdapter, Registry

_logger = logging.getLogger(__name__)
_MAX_FILES = 16
_STALE_S = 3600.0  # a temporary folder this old belongs to a pull that was killed


def pull(name: str, *, uri: str, cache: Path | None = None) -> Path:
    """Return a folder with the adapter that `TASK`, `TASK@alias` or `TASK:3` names.

    The folder is `cache/<digest>`; it appears whole, after every file was checked against the manifest and the
    manifest against the registry. A cached folder is checked again and, when it was changed, pulled again. While the
    server is away, what the name last meant here is used, with a notice.

    Args:
        uri: The store, as `resolve_uri` gives it.
        cache: Defaults to `adapters` in the state folder.
    Raises:
        RegistryError: no such adapter.
        IntegrityError: the registry's files are not what was registered; nothing is written.
        TrackingError: the server does not answer, and the adapter is not cached.
        HomeError: the cache cannot be written.
    """
    folder = ensure_dir(cache or home() / "adapters")
    names = _Names(folder / "names.json", uri)
    try:
        adapter = Registry(uri).resolve(name)
    except TrackingError:
        digest = names.get(name)
        if digest is None or not _is_good(folder / digest, digest):
            raise
        _logger.warning("the registry does not answer: using the cached %s (%s)", name, digest[:12])
        return folder / digest
    target = folder / adapter.digest
    if not _is_good(target, adapter.digest):
        _download(adapter, uri, target)
    names.put(name, adapter.digest)
    return target


def _is_good(folder: Path, digest: str) -> bool:
    """Whether `folder` is cached and unchanged; a changed one is noted and will be replaced."""
    if not folder.is_dir():
        return False
    try:
        _verify(folder, digest)
    except IntegrityError as error:
        _logger.warning("the cached adapter was changed: %s", error)
        return False
    return True


def _verify(folder: Path, digest: str) -> None:
    verify(folder)
    actual = folder_digest(folder)
    if actual != digest:
        raise IntegrityError(
            f"{folder} must have digest {digest[:16]}..., but got {actual[:16]}...: its manifest was exchanged.",
            hint="do not use this folder; pull the adapter again",
        )


def _download(adapter: RegisteredAdapter, uri: str, target: Path) -> None:
    """Fetch into a temporary folder beside `target`, check, and put it in place whole."""
    with disk_faults(target):
        _sweep(target.parent)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".pull-"))
        try:
            fetched = _fetch(adapter, uri, temporary)
            _verify_source(fetched, adapter)
            _put(fetched, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _fetch(adapter: RegisteredAdapter, uri: str, folder: Path) -> Path:
    with speaking(uri):
        from mlflow.artifacts import download_artifacts, list_artifacts

        listed = list_artifacts(artifact_uri=adapter.source, tracking_uri=uri)
        if not 0 < len(listed) <= _MAX_FILES:
            raise IntegrityError(
                f"{adapter.task}:{adapter.version} must have 1 to {_MAX_FILES} files, but got {len(listed)}.",
                hint=_registry_hint(adapter),
            )
        for file in listed:  # before a byte of it is fetched
            if file.is_dir:
                raise IntegrityError(f"{file.path} must be a file, but it is a folder.", hint=_registry_hint(adapter))
            check_file(PurePosixPath(file.path).name, file.file_size or 0)
        return Path(download_artifacts(artifact_uri=adapter.source, dst_path=str(folder), tracking_uri=uri))


def _verify_source(fetched: Path, adapter: RegisteredAdapter) -> None:
    try:
        _verify(fetched, adapter.digest)
    except IntegrityError as error:
        raise IntegrityError(
            f"{adapter.task}:{adapter.version} in the registry is not what was registered: {error}",
            hint=_registry_hint(adapter),
        ) from error


def _put(fetched: Path, target: Path) -> None:
    if target.exists():  # a changed copy; renamed first, so that no reader sees half of it gone
        target.rename(fetched.parent / "replaced")
    try:
        fetched.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # Another pull of the same digest was quicker, and its folder is as good.


def _sweep(cache: Path) -> None:
    for folder in cache.glob(".pull-*"):
        if folder.stat().st_mtime < time.time() - _STALE_S:
            shutil.rmtree(folder, ignore_errors=True)


def _registry_hint(adapter: RegisteredAdapter) -> str:
    return f"pull another version of {adapter.task}, and tell whoever keeps the registry"


class _Names:
    """What each name meant when it was last resolved, for when the registry is away. Loss of an entry is harmless."""

    def __init__(self, path: Path, uri: str) -> None:
        self._path = path
        self._prefix = f"{redact(uri)} "

    def get(self, name: str) -> str | None:
        return self._read().get(self._prefix + name)

    def put(self, name: str, digest: str) -> None:
        known = self._read()
        if known.get(self._prefix + name) != digest:
            write_atomic(self._path, json.dumps(known | {self._prefix + name: digest}, indent=1, sort_keys=True))

    def _read(self) -> dict[str, str]:
        try:
            read = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return read if isinstance(read, dict) else {}
