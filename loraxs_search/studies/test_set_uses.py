"""Which finalists have answered which test rows on this machine: each counts as a comparison on them.

A file for each set of test rows, by its fingerprint. It is written when answers are kept, and outlives its study.
"""

from __future__ import annotations

import json
from pathlib import Path

from loraxs_search.errors import HomeError
from loraxs_search.home import disk_faults, ensure_dir, exclusive, home, write_atomic
from loraxs_search.records.promotion import Candidate


def record_use(finalist: Candidate) -> None:
    """Record that a finalist has answered its test rows; again changes nothing."""
    if not finalist.test_fingerprint:
        return
    path = _path(finalist.test_fingerprint)
    ensure_dir(path.parent)
    with disk_faults(path), exclusive(path):
        known, own = _read(path), [finalist.task, finalist.key]
        if own not in known:
            write_atomic(path, json.dumps([*known, own], indent=1))


def uses(task: str, test_fingerprint: str) -> list[str]:
    """Return the keys of a task's finalists that have answered these test rows, in order.

    Raises:
        HomeError: the file is damaged.
    """
    return [key for known, key in _read(_path(test_fingerprint)) if known == task]


def _path(test_fingerprint: str) -> Path:
    return home() / "test_set_uses" / f"{test_fingerprint}.json"


def _read(path: Path) -> list[list[str]]:
    try:
        return [[str(task), str(key)] for task, key in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise HomeError(
            f"{path} must list the finalists that have answered these test rows, but it is damaged.",
            hint="restore it from a backup: without it, a comparison on these rows would be held to too little",
        ) from error
