"""The sampler's memory on disk: Optuna's own journal format, in a file that one driver owns."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, Trial

from loraxs_search.append_log import AppendLog
from loraxs_search.home import disk_faults
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
        self._held: bytes | None = None  # events to be written as one
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
        """Write what is appended inside in one go at the end: a kill leaves all of it on disk, or nothing.

        After an exception too: the storage has taken it in by then.
        """
        self._held = b""
        try:
            yield
        finally:
            content, self._held = self._held, None
            self._log.append(content)


class SingleWriterStorage(JournalStorage):
    """Optuna's storage on a `SingleWriterJournal`."""

    def __init__(self, log: SingleWriterJournal) -> None:
        super().__init__(log)
        self.log = log


def as_one(study: optuna.Study) -> contextlib.AbstractContextManager[None]:
    """Write what the study takes in inside the block whole or not at all; a study in memory needs no such care."""
    storage = study._storage  # no public accessor
    return storage.log.held() if isinstance(storage, SingleWriterStorage) else contextlib.nullcontext()


def open_optuna_study(path: Path, name: str, *directions: Direction) -> optuna.Study:
    """Open the study's storage, created at the first call; its trials have a value for each direction.

    Its sampler is one that costs nothing: Optuna asks it whenever a trial is taken up. `propose` brings its own.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = SingleWriterStorage(SingleWriterJournal(path))
    sampler = optuna.samplers.RandomSampler(seed=0)
    try:
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    except KeyError:
        return optuna.create_study(storage=storage, study_name=name, directions=directions, sampler=sampler)


def sync(path: Path) -> None:
    """Flush a file to the device, whichever process wrote it."""
    with disk_faults(path), path.open("rb") as file:
        os.fsync(file.fileno())


def live_trial(study: optuna.Study, frozen: FrozenTrial) -> Trial:
    """Return the handle of a trial that an earlier process may have asked for.

    `optuna.trial.Trial` is public and so is its constructor; the storage id it takes has no public accessor.
    """
    return Trial(study, frozen._trial_id)
