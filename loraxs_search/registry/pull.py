"""Pulling an adapter by name into a content-addressed cache: verified, atomic, resumable, quick when it is there.

What a name last meant here is used when the registry is unreachable, or unchanged since.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from loraxs_search.errors import IntegrityError, RegistryError, TrackingError, UnknownTaskError
from loraxs_search.home import (
    disk_faults,
    ensure_dir,
    exclusive,
    file_sha256,
    home,
    mark_used,
    remove_whole,
    write_atomic,
)
from loraxs_search.manifest import MANIFEST, MAX_BYTES, Manifest, check_file, lies_beside, read_manifest, verify
from loraxs_search.mlflow_uri import sqlite_path
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.registry import factor_sets
from loraxs_search.registry.store import RegisteredAdapter, Registry

_logger = logging.getLogger(__name__)
_MAX_FILES = 16


def pull(name: str, *, uri: str, cache: Path | None = None) -> Path:
    """Return a folder with the adapter that `TASK`, `TASK@alias` or `TASK:3` names.

    The folder is `cache/<digest>`; it appears whole, after the manifest was checked against the registry and every
    file against the manifest. A pull that was cut short continues: files that came whole are not fetched again. A
    cached folder is checked again and, when it was changed, pulled again. Factors that the adapter stands on and this
    machine lacks come with it. While the server is away, what the name last meant here is used, with a notice.

    Args:
        uri: The store, as `resolve_uri` gives it.
        cache: Defaults to `adapters` in the state folder.
    Raises:
        RegistryError: no such adapter.
        IntegrityError: the registry's files are not what was registered.
        TrackingError: the server does not answer, and the adapter is not cached.
        HomeError: the cache cannot be written.
    """
    return pull_version(name, uri=uri, cache=cache)[0]


def pull_version(name: str, *, uri: str, cache: Path | None = None) -> tuple[Path, int]:
    """Like `pull`, but also return the version that the folder holds."""
    folder, registry = ensure_dir(cache or home() / "adapters"), Registry(uri)
    names, key = folder / "names.json", f"{uri} {name}"
    known, stamp = _meanings(names).get(key), store_stamp(uri)
    if known is not None and stamp is not None and stamp == known.stamp:  # nothing was written to the store since
        manifest = _good_manifest(folder / known.digest, known.digest)
        if manifest is not None:
            factor_sets.bring(registry, manifest.base_digest, manifest.factors)
            return folder / known.digest, known.version
    try:
        adapter = registry.resolve(name)
    except TrackingError:
        if known is None or _good_manifest(target := folder / known.digest, known.digest) is None:
            raise
        _logger.warning("the registry does not answer: using the cached %s (%s)", name, known.digest[:12])
        return target, known.version
    target = folder / adapter.digest
    manifest = _good_manifest(target, adapter.digest) or _download(adapter, registry, target)
    factor_sets.bring(registry, manifest.base_digest, manifest.factors)
    if (meaning := _Meaning(adapter.digest, adapter.version, stamp)) != known:
        write_atomic(names, to_json(_meanings(names) | {key: meaning}, indent=1).encode())
    return target, adapter.version


def adapter_folder(source: str | Path, *, uri: str) -> Path:
    """Return an adapter's folder: `source` where it is a path, else what `pull` makes of that name.

    A string is a path where it says so: `./x`, `../x`, `~/x` or `/x`. No name of an adapter begins like that, so what
    lies in the working directory never stands in for what the registry has.

    Raises:
        IntegrityError: the path is no adapter folder.
        RegistryError, TrackingError: as `pull`.
    """
    if isinstance(source, Path) or source.startswith((".", "~", os.sep)):
        path = Path(source).expanduser()
        if not path.is_dir():
            got = "it is a file" if path.exists() else "there is none"
            raise IntegrityError(
                f"{source} must be an adapter folder, but {got}.", hint="`loraxs-search pull TASK` makes one"
            )
        read_manifest(path)
        return path
    try:
        return pull(source, uri=uri)
    except RegistryError as error:
        if os.sep in source or (isinstance(error, UnknownTaskError) and (Path(source) / MANIFEST).is_file()):
            error.hint = f"write ./{source} for the folder; {error.hint}"
        raise


def _good_manifest(folder: Path, digest: str) -> Manifest | None:
    """Return the manifest of a cached folder that is unchanged; a changed one is noted and will be replaced."""
    if not folder.is_dir():
        return None
    try:
        manifest = verify(folder, digest=digest)
    except IntegrityError as error:
        _logger.warning("the cached adapter was changed: %s", error)
        return None
    mark_used(folder)
    return manifest


def _download(adapter: RegisteredAdapter, registry: Registry, target: Path) -> Manifest:
    """Fetch into a partial folder beside `target`, check, and put it in place whole."""
    partial = target.with_name(f".pull-{target.name}")
    with disk_faults(target), exclusive(partial):
        if (manifest := _good_manifest(target, adapter.digest)) is not None:  # another pull was quicker
            return manifest
        partial.mkdir(exist_ok=True)
        try:
            _fetch(adapter, registry, partial)
            manifest = verify(partial, digest=adapter.digest)
        except IntegrityError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise IntegrityError(
                f"{adapter.task}:{adapter.version} in the registry is not what was registered: {error.message}",
                hint=f"pull another version of {adapter.task}, and tell whoever keeps the registry",
            ) from error
        remove_whole(target)  # a changed copy
        partial.rename(target)
        return manifest


def _fetch(adapter: RegisteredAdapter, registry: Registry, folder: Path) -> None:
    """Fetch the manifest, and then what it lists and `folder` lacks; every name and size is checked before."""
    source, listed = adapter.source, dict[str, int]()
    for name, num_bytes in registry.list_files(source).items():
        if lies_beside(name, num_bytes is None):
            continue
        if num_bytes is None or (Path(source.removeprefix("file://")) / name).is_symlink():  # it could lead anywhere
            raise IntegrityError(f"{name} must be a plain file: no folders, no links.")
        check_file(name, num_bytes)
        listed[name] = num_bytes or MAX_BYTES[Path(name).suffix]
    if not 0 < len(listed) <= _MAX_FILES:
        raise IntegrityError(f"an adapter must have 1 to {_MAX_FILES} files, but got {len(listed)}.")
    if MANIFEST in listed:
        registry.fetch_file(source, MANIFEST, folder, listed[MANIFEST])
    manifest = read_manifest(folder, adapter.digest)
    for left_over in {path.name for path in folder.iterdir()} - listed.keys():
        (folder / left_over).unlink()
    if unlisted := sorted(listed.keys() - manifest.files.keys() - {MANIFEST}):
        raise IntegrityError(f"{unlisted[0]} is not listed in the manifest.")
    for name in sorted(listed.keys() - {MANIFEST}):
        path = folder / name
        if not path.is_file() or path.is_symlink() or file_sha256(path) != manifest.files[name]:
            registry.fetch_file(source, name, folder, listed[name])


# ---- what names meant here -------------------------------------------------------------------------------------------
# A file system may give two writes within its clock's tick the same time: a stamp younger than this proves nothing.
_TICK_S = 0.1


@dataclass(frozen=True)
class _Meaning:
    """What a name meant.

    Args:
        stamp: How the embedded store stood then; None if that cannot tell.
    """

    digest: str
    version: int
    stamp: str | None = None


def _meanings(path: Path) -> dict[str, _Meaning]:
    """Return what names last meant, by store and name; a damaged file is only forgotten."""
    try:
        return from_json(dict[str, _Meaning], path.read_bytes())
    except (FileNotFoundError, ValueError):  # pydantic's ValidationError is one
        return {}


def store_stamp(uri: str) -> str | None:
    """Return sizes and times of an embedded store's files, which change with every write; None for a server."""
    database = sqlite_path(uri)
    if database is None:
        return None
    parts, newest = [], 0.0
    for path in (database, database.with_name(f"{database.name}-wal")):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        parts.append(f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}")
        newest = max(newest, status.st_mtime)
    return " ".join(parts) if parts and time.time() - newest > _TICK_S else None
