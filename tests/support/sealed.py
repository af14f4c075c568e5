"""Adapter folders whose files tests write one by one."""

from __future__ import annotations

from pathlib import Path

from loraxs_search.records import Manifest
from loraxs_search.registry import sealed, verify
from loraxs_search.registry.manifest import MANIFEST


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest.json` with the sha256 of every other file of a folder, and return it as written."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    (folder / MANIFEST).write_bytes(sealed(files, manifest)[MANIFEST])
    return verify(folder)
