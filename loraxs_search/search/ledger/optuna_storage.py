"""The sampler's memory on disk: Optuna's own journal format, in a file that one driver owns."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, Trial

from loraxs_search.append_log import AppendLog
from loraxs_search.errors import HomeError
from loraxs_search.home import ENV_HOME, disk_faults
from loraxs_search.records import Direction


class SingleWriterJournal(BaseJournalBackend):
    """A journal that only this process writes, under the study's lock; anyone reads it with Optuna's own backend.

    Without Optuna's lock and its flush to the device at each value, an event costs microseconds: `sync` flushes where
    it matters. A line that a killed process or a full disk tore is cut off by the next write.
    """

    def __init__(self, path: Path) -> None:
        self._log = AppendLog(path)
        self._first = 0  # number of the first of the events that the storage has not read
        self._unread: list[dict[str, Any]] = []
        self._held: bytes | None = None  # what is to be written as one
        with disk_faults(path):
            self._unread += map(json.loads, self._log.new_lines())

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Return the events from a number on; the storage never asks for those before again."""
        del self._unread[: log_number_from - self._first]
        self._first = log_number_from
        return list(self._unread)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append events; they are in the kernel's hands when this returns, or when they are no longer held."""
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        content = "".join(f"{line}\n" for line in lines).encode()
        if self._held is None:
            self._log.append(content)
        else:
            self._held += content
        self._unread += map(json.loads, lines)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Write what is appended meanwhile in one go at the end, which a kill comes before or after.

        After an exception too: the storage has taken it in by then.
        """
        self._held = b""
        try:
            yield
        finally:
            content, self._held = self._held, None
            self._log.append(content)


class OwnedStorage(JournalStorage):
    """Optuna's storage on a journal of ours."""

    def __init__(self, log: SingleWriterJournal) -> None:
        super().__init__(log)
        self.log = log


def as_one(study: optuna.Study) -> contextlib.AbstractContextManager[None]:
    """Let what the study is told meanwhile be on disk whole or not at all; a database takes each value by itself."""
    storage = study._storage  # no public accessor
    return storage.log.held() if isinstance(storage, OwnedStorage) else contextlib.nullcontext()


def open_optuna_study(path: Path, name: str, direction: Direction) -> optuna.Study:
    """Open the study's storage, created at the first call; a name that ends with `.db` is a SQLite database.

    Its sampler is one that costs nothing: Optuna asks it whenever a trial is taken up. `propose` brings its own.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(path)
    sampler = optuna.samplers.RandomSampler(seed=0)
    try:
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    except KeyError:
        return optuna.create_study(storage=storage, study_name=name, direction=direction, sampler=sampler)


def sync(path: Path) -> None:
    """Flush to the device what was written to a file, by whomever."""
    with disk_faults(path), path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def storage_faults(path: Path) -> Iterator[None]:
    """Turn what Optuna says of a database that cannot be written into `HomeError`.

    Raises:
        HomeError: the study's storage cannot be read or written.
    """
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except (optuna.exceptions.StorageInternalError, OperationalError) as error:
        cause = error if isinstance(error, OperationalError) else error.__cause__
        raise HomeError(
            f"{path} must be writable, but the system says: {getattr(cause, 'orig', cause)}.",
            hint=f"free some space, or see that {ENV_HOME} is on a disk that can be written",
        ) from error


def _storage(path: Path) -> BaseStorage:
    if path.suffix == ".db":
        return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    return OwnedStorage(SingleWriterJournal(path))


def live_trial(study: optuna.Study, frozen: FrozenTrial) -> Trial:
    """Return the handle of a trial that an earlier process may have asked for.

    `optuna.trial.Trial` is public and so is its constructor; the storage id it takes has no public accessor.
    """
    return Trial(study, frozen._trial_id)
