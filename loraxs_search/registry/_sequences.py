"""The highest sequence number that this machine has seen signed for each name: older ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

from loraxs_search.errors import IntegrityError
from loraxs_search.home import alone, disk_faults, ensure_dir, home, write_atomic
from loraxs_search.mlflow_uri import redact

FILE = "sequences.json"


class SeenSequences:
    """Numbers by registry, task and alias, in a file of the state folder that every process shares."""

    def __init__(self, uri: str) -> None:
        self._uri = redact(uri)

    def highest(self, task: str, alias: str) -> int:
        """Return the highest number seen; 0 where none was.

        Raises:
            IntegrityError: the file is damaged.
        """
        return self._read().get(self._name(task, alias), 0)

    def accept(self, task: str, alias: str, sequence: int) -> None:
        """Remember a number that was seen signed.

        Raises:
            IntegrityError: a higher one was seen before, or the file is damaged.
            HomeError: the file cannot be written.
        """
        if sequence > self.highest(task, alias):
            ensure_dir(_path().parent)
            with disk_faults(_path()), alone(_path()):
                seen = self._read()
                name = self._name(task, alias)
                seen[name] = max(sequence, seen.get(name, 0))
                write_atomic(_path(), json.dumps(seen, indent=1, sort_keys=True))
        if (highest := self.highest(task, alias)) > sequence:
            raise IntegrityError(
                f"`sequence number` of {task}@{alias} in {self._uri} must be at least {highest}, which was seen here, "
                f"but got {sequence}: an older adapter was put in the place of a newer one, and not by `rollback`.",
                hint="tell whoever keeps the registry; if it was set up anew or restored from a backup, remove "
                f"{self._name(task, alias)!r} from {_path()}",
            )

    def _name(self, task: str, alias: str) -> str:
        return f"{self._uri} {task}@{alias}"

    def _read(self) -> dict[str, int]:
        try:
            read = json.loads(_path().read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            read = None
        if not isinstance(read, dict) or not all(isinstance(number, int) for number in read.values()):
            raise IntegrityError(
                f"{_path()} must hold the sequence numbers seen here, but it is damaged.",
                hint="restore it, or remove it: what was put back since can then not be noticed any more",
            )
        return read


def _path() -> Path:
    return home() / FILE
