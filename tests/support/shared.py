"""Folders that one worker of a session makes and all of them use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def session_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder of the session, the same in each of its workers."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def shared_folder(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the session; the first worker that asks makes it, the others wait.

    Args:
        make: Fills an empty folder, which is renamed when it is whole.
    """
    folder = session_folder(factory) / name
    with FileLock(folder.with_name(f"{name}.lock")):
        if not folder.exists():
            part = folder.with_name(f"{name}.part")
            shutil.rmtree(part, ignore_errors=True)  # of a worker that failed
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder
