"""Exports made in another process: torch traces a graph under flags that every thread of a process sees.

The process is kept, so that only the first export waits for its start, and ends with the one that started it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import cache
from pathlib import Path

from loraxs_search.methods.export import converted


def converted_elsewhere(folder: Path, form: str) -> Path:
    """Return an adapter in another format as `converted` does. For a worker thread.

    Raises:
        LoraxsError: as `converted`.
        BrokenExecutor: the process was killed twice.
    """
    try:
        return _process().submit(converted, folder, form).result()
    except BrokenExecutor:  # the process was killed
        _process.cache_clear()
        return _process().submit(converted, folder, form).result()


@cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
