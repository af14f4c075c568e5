"""Adapter folders: each is there whole, or not at all. Who writes one holds the study's lock."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from loraxs_search.home import disk_faults, sync_folder, write_atomic

_ASIDE = ".old"


def replace_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder with these files, in place of the one that may be there.

    A kill between the last two renames leaves the old one beside it; `restore_folders` brings it back.

    Raises:
        HomeError: the disk fails.
    """
    aside = target.with_name(f".{target.name}{_ASIDE}")
    building = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        for name, content in files.items():
            write_atomic(building / name, content)
        with disk_faults(target):
            restore_folders(target.parent)
            if target.exists():
                target.rename(aside)
            building.rename(target)
            sync_folder(target.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def are_aside(parent: Path) -> list[Path]:
    """Return the folders that are on their way out, or that a kill left so."""
    return sorted(parent.glob(f".*{_ASIDE}"))


def restore_folders(parent: Path) -> None:
    """Bring back the folders whose replacement was killed before the new one was in its place."""
    for aside in are_aside(parent):
        target = aside.with_name(aside.name[1:].removesuffix(_ASIDE))
        if target.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(target)
