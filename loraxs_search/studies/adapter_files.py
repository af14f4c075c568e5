"""Adapter folders: each is there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from loraxs_search.home import disk_faults, write_atomic


def replace_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder with these files, in place of the one that may be there.

    A kill between the last two renames leaves the old one beside it, in `.NAME.old`.

    Raises:
        HomeError: the disk fails.
    """
    building, aside = (target.with_name(f".{target.name}.{end}") for end in (os.getpid(), "old"))
    shutil.rmtree(building, ignore_errors=True)
    for name, content in files.items():
        write_atomic(building / name, content)
    with disk_faults(target):
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        building.rename(target)
    shutil.rmtree(aside, ignore_errors=True)
