"""A copy of an adapter for people, where they want it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from loraxs_search.errors import UsageError
from loraxs_search.home import disk_faults


def new_folder(path: Path) -> Path:
    """Return a folder for a copy.

    Raises:
        UsageError: it holds something, or is none.
    """
    with disk_faults(path, "--out"):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"`--out` must name a new or empty folder, but {path} holds something.")
    return path


def copy_folder(folder: Path, target: Path) -> None:
    """Copy a flat folder to one that is new or empty; of a copy that fails nothing is left."""
    is_new = not target.exists()
    place = target.with_name(f".{target.name}.{os.getpid()}") if is_new else target  # may be where a volume is mounted
    with disk_faults(target, "--out"):
        try:
            place.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                shutil.copyfile(path, place / path.name)
            if is_new:
                place.rename(target)
        except BaseException:
            if is_new:
                shutil.rmtree(place, ignore_errors=True)
            else:
                for path in folder.iterdir():
                    (place / path.name).unlink(missing_ok=True)
            raise
