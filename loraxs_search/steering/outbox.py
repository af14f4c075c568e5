"""Commands to studies of other machines that wait on this one, because the server they go through was away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from loraxs_search.home import disk_faults, home, write_atomic
from loraxs_search.records import Command, from_json, to_json


@dataclass(frozen=True)
class WaitingCommand:
    """A command, the study that it is for, and the MLflow server through which it goes."""

    uri: str
    study: str
    command: Command


class Outbox:
    """The folder `outbox` of the state folder, a file for each command; what is none is passed over."""

    def __init__(self) -> None:
        self.path = home() / "outbox"

    def put(self, waiting: WaitingCommand) -> None:
        """Keep a command until it is sent.

        Raises:
            HomeError: the folder cannot be written.
        """
        write_atomic(self.path / f"{waiting.command.command_id}.json", to_json(waiting))

    def waiting(self, uri: str | None = None) -> list[WaitingCommand]:
        """Return the commands that wait, oldest first; those for one server, if it is named."""
        waiting = [each for each in self._read() if uri in (None, each.uri)]
        return sorted(waiting, key=lambda each: (each.command.issued_at, each.command.command_id))

    def remove(self, waiting: WaitingCommand) -> None:
        """Take a command away; one that is not there changes nothing."""
        path = self.path / f"{waiting.command.command_id}.json"
        with disk_faults(path):
            path.unlink(missing_ok=True)

    def _read(self) -> Iterator[WaitingCommand]:
        for path in sorted(self.path.glob("[!.]*.json")):
            with contextlib.suppress(OSError, ValueError):
                yield from_json(WaitingCommand, path.read_bytes())
