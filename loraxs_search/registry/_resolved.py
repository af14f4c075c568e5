"""What names meant when they were last resolved: used when the registry is unreachable, or unchanged since."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from loraxs_search.home import write_atomic
from loraxs_search.mlflow_uri import redact, sqlite_path

# A file system may give two writes within its clock's tick the same time: a stamp younger than this proves nothing.
_TICK_S = 0.1


@dataclass(frozen=True)
class Resolved:
    """What a name meant.

    Args:
        signatures: By alias, as they stood beside the version.
        stamp: How the embedded store stood then; None where that cannot tell.
    """

    digest: str
    version: int
    signatures: Mapping[str, str]
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

    def names(self) -> list[str]:
        """Return the names that have been resolved in this store."""
        return [name.removeprefix(self._prefix) for name in self._read() if name.startswith(self._prefix)]

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
