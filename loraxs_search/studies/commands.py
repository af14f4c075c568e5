"""The inbox of a study: commands of people on this machine, one file each, until the driver has answered them."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
from pathlib import Path

from loraxs_search.errors import StudyError
from loraxs_search.home import disk_faults, write_atomic
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.search import Command
from loraxs_search.studies.storage import Storage

_logger = logging.getLogger(__name__)
_NAME = re.compile(r"(?P<id>[A-Za-z0-9-]{1,64})\.json")


class CommandInbox:
    """Files of one folder. Anyone who may write there may steer the study.

    A file is whole from the moment it is seen and flushed to the device, so a command is never lost once `put` has
    returned. The driver removes it when the journal has its answer: after a kill in between, the journal knows its id.

    Args:
        path: The folder, in the study's; it is made by the first command.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._place = path, f"{path.parent.name}/{path.name}"  # the latter in a storage
        self._unreadable: set[Path] = set()  # those that were warned of

    def put(self, command: Command) -> None:
        """Leave a command for the driver, behind those that wait there, even if the clock has been set back since.

        Raises:
            HomeError: the folder cannot be written.
            StudyError: the study was removed meanwhile.
        """
        try:
            with disk_faults(self._path):
                self._path.mkdir(exist_ok=True)
        except FileNotFoundError as error:
            raise StudyError(
                f"Study {self._path.parent.name!r} was removed meanwhile.",
                hint="`loraxs-search status` lists what is left",
            ) from error
        latest = max((other.issued_at for other in self.waiting()), default=0.0)
        if command.issued_at <= latest:
            command = replace(command, issued_at=math.nextafter(latest, math.inf))
        write_atomic(self._path / f"{command.command_id}.json", to_json(command), parents=False)

    def waiting(self, *, set_aside: bool = False) -> list[Command]:
        """Return the commands that lie there, oldest first; other files are skipped.

        What cannot be read is warned of once: one file stops neither the search nor other commands.

        Args:
            set_aside: Rename other files, with a warning: the driver looks often.
        """
        commands, unreadable = list[Command](), dict[Path, OSError]()
        try:
            paths = [path for path in self._path.iterdir() if _NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            paths, unreadable = [], {self._path: error}
        for path in paths:
            try:
                command = from_json(Command, path.read_bytes())
                if f"{command.command_id}.json" == path.name:
                    commands.append(command)
                    continue
            except FileNotFoundError:  # its sender took it back
                continue
            except OSError as error:  # as of a file that only its owner may read
                unreadable[path] = error
                continue
            except ValueError:
                pass  # not a command
            if set_aside:
                _logger.warning("%s is no command to the search; it is set aside", path)
                with disk_faults(path):
                    path.replace(path.with_suffix(".damaged"))
        for path in unreadable.keys() - self._unreadable:
            self._unreadable.add(path)
            _logger.warning("commands in %s cannot be read: %s", path, unreadable[path].strerror)
        return sorted(commands, key=lambda command: (command.issued_at, command.command_id))

    def remove(self, command_id: str) -> None:
        """Remove an answered command; a missing one changes nothing."""
        with disk_faults(self._path):
            (self._path / f"{command_id}.json").unlink(missing_ok=True)

    def put_elsewhere(self, storage: Storage, command: Command) -> None:
        """Leave a command for a driver on another machine.

        Raises:
            StorageError: the storage cannot be used.
        """
        storage.create(f"{self._place}/{command.command_id}.json", to_json(command).encode())

    def take_from(self, storage: Storage) -> None:
        """Bring here what `put_elsewhere` has left in a storage; one that comes again after a kill counts once.

        Raises:
            StorageError: the storage cannot be used.
            HomeError: the folder cannot be written.
        """
        for key in storage.keys(self._place):
            name, content = key.rpartition("/")[2], storage.get(key)
            if content and _NAME.fullmatch(name):
                write_atomic(self._path / name, content)
            storage.delete(key)
