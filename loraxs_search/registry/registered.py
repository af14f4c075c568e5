"""The manifests of all registered versions, for who wants to know what they stand on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from loraxs_search.records import Manifest
from loraxs_search.registry import _artifacts, _listing, _versions
from loraxs_search.registry._client import connect, exists, speaking
from loraxs_search.registry.manifest import MANIFEST, MAX_BYTES, read


def registered_manifests(uri: str) -> Iterator[tuple[str, Manifest]]:
    """Yield `TASK:3` and the manifest of every version of every task.

    Raises:
        TrackingError: the server does not answer.
        RegistryError, IntegrityError: a version's files cannot be read.
    """
    if not exists(uri):
        return
    with speaking(uri):
        client = connect(uri)
        for model in _listing.models(_listing.asking(client)):
            for version in _versions.all_versions(client, model.name):
                if "loraxs.digest" in version.tags:
                    yield f"{model.name}:{version.version}", _manifest(uri, version.source)


def _manifest(uri: str, source: str) -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        _artifacts.fetch_file(uri, source, MANIFEST, Path(folder), MAX_BYTES[".json"])
        return read(Path(folder))
