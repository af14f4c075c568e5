"""Folders in the home that are made once from a file, and are whole or not there at all."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from loraxs_search.base_model._folder import is_model_folder
from loraxs_search.home import disk_faults, mark_used

_ABANDONED_AFTER_S = 3600.0


def made_once(final: Path, make: Callable[[Path], None]) -> Path:
    """Return a model's folder, made on first use: in a private folder beside it, then renamed.

    Of two at once, the first one stays. What a killed process left behind is removed an hour later.

    Args:
        final: Named after the content that it is made from.
        make: Writes the model into an empty folder; what it raises is passed on, and nothing stays.
    Raises:
        HomeError: the disk is full or cannot be written.
    """
    if is_model_folder(final):
        mark_used(final)
        return final
    with disk_faults(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        work = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        work.mkdir()
        try:
            make(work)
            if not is_model_folder(final):
                shutil.rmtree(final, ignore_errors=True)  # somebody removed files from it
            with contextlib.suppress(OSError):  # not empty: another process was first
                work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return final


def _sweep(final: Path) -> None:
    """Remove what processes that were killed have left behind."""
    for left in final.parent.glob(f".{final.name}.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(left, ignore_errors=True)
