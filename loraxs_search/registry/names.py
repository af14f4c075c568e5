"""Names of adapters: `TASK`, `TASK@alias`, `TASK:3`; what they last meant here.

What a name meant is used when the registry is unreachable, or unchanged since. Completion lists the tasks that this
machine knows without asking MLflow, which takes seconds to import.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from loraxs_search.errors import RegistryError
from loraxs_search.home import write_atomic
from loraxs_search.mlflow_uri import redact, sqlite_path
from loraxs_search.records import MAX_NAME

CHAMPION = "champion"
KIND, ADAPTER = "loraxs.kind", "adapter"  # in sight: what a registered model of ours is
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ALIAS = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class AdapterName:
    """A parsed name: a version of a task's adapters, by number or by alias."""

    task: str
    alias: str | None = CHAMPION
    version: int | None = None

    def __str__(self) -> str:
        return f"{self.task}:{self.version}" if self.version is not None else f"{self.task}@{self.alias}"


def is_sha256(text: str) -> bool:
    """Return whether this is a digest as we write them, 64 hex digits, and so safe in a path."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def check_task(task: str) -> str:
    """Return `task` if the registry can hold that name.

    Raises:
        RegistryError: it is too long, or holds characters other than letters, digits, `_`, `.` and `-`.
    """
    if not _TASK.fullmatch(task) or len(task) > MAX_NAME:
        raise RegistryError(
            f"`task name` must start with a letter or digit and hold at most {MAX_NAME} letters, digits, _ . -, but"
            f" got {task!r}.",
            hint="`predict` takes a folder as it is, and `pull` the name of a task"
            if os.sep in task
            else "`loraxs-search ls` has every task",
        )
    return task


def parse_name(name: str) -> AdapterName:
    """Read `TASK` (its champion), `TASK@alias` or `TASK:3`.

    Raises:
        RegistryError: the name has none of these forms.
    """
    task, at, alias = name.partition("@")
    if at:
        reserved = alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias)
        if not _ALIAS.fullmatch(alias) or reserved:
            raise RegistryError(f"`alias` must be a name such as champion, but got {alias!r} in {name!r}.", hint=_HINT)
        return AdapterName(check_task(task), alias)
    task, colon, version = name.partition(":")
    if colon:
        if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            raise RegistryError(f"`version` must be a number from 1, but got {version!r} in {name!r}.", hint=_HINT)
        return AdapterName(check_task(task), alias=None, version=int(version))
    return AdapterName(check_task(task))


_HINT = "write TASK, TASK@alias or TASK:3"


# A file system may give two writes within its clock's tick the same time: a stamp younger than this proves nothing.
_TICK_S = 0.1


@dataclass(frozen=True)
class Resolved:
    """What a name meant.

    Args:
        stamp: How the embedded store stood then; None if that cannot tell.
    """

    digest: str
    version: int
    stamp: str | None = None

    def is_fresh(self, stamp: str | None) -> bool:
        """Whether the name certainly still means the same."""
        return stamp is not None and stamp == self.stamp


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


class ResolvedNames:
    """A file of names by store. Loss of an entry is harmless."""

    def __init__(self, path: Path, uri: str) -> None:
        self._path = path
        self._prefix = f"{redact(uri)} "

    def get(self, name: str) -> Resolved | None:
        """Return what the name last meant."""
        entry = self._read().get(self._prefix + name)
        try:
            return Resolved(**entry) if isinstance(entry, dict) else None
        except TypeError:
            return None

    def put(self, name: str, meaning: Resolved) -> None:
        """Remember what the name means."""
        known, entry = self._read(), asdict(meaning)
        if known.get(self._prefix + name) != entry:
            write_atomic(self._path, json.dumps(known | {self._prefix + name: entry}, indent=1, sort_keys=True))

    def _read(self) -> dict[str, object]:
        try:
            read = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return read if isinstance(read, dict) else {}
