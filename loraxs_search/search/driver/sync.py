"""Brings to MLflow what studies could not write while it was away. Needs no Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from loraxs_search.errors import LoraxsError, StorageError
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.search.driver.finished import is_recorded, record_finished
from loraxs_search.studies import Storage, StudyFolder, is_behind, list_studies, mirrored
from loraxs_search.tracking.tracker import Tracker

_AWAY_AFTER_S = 10.0


@dataclass(frozen=True)
class Synced:
    """What became of a study's records.

    Args:
        state: `complete` when MLflow has them all now; `running` when a search is at work on it and brings them
            itself; `elsewhere` when a driver on another machine has gone on with the study, and what waits here is old;
            `waiting` when MLflow is away, or the storage that says whether another machine has gone on; `damaged` when
            the study cannot be read, or its folder not written.
        problem: Why they wait, or what is damaged.
    """

    study: str
    state: Literal["complete", "running", "elsewhere", "waiting", "unreadable"]
    problem: str = ""


def sync(study: str | None = None) -> Iterator[Synced]:
    """Bring over what waits of one study, or of all, newest first; yield each as it is done.

    Raises:
        StudyError: there is no such study.
    """
    if study is not None:
        yield _sync(StudyFolder.open(study))
        return
    for name in list_studies():
        yield _try_to_sync(name)


def _try_to_sync(name: str) -> Synced:
    try:
        return _sync(StudyFolder.open(name))
    except LoraxsError as error:  # the others are brought over all the same
        return Synced(name, "unreadable", error.message)


def _sync(folder: StudyFolder) -> Synced:
    if folder.is_running():
        return Synced(folder.name, "running")
    info, uri = folder.info, resolve_uri(folder.info.tracking_uri)
    try:
        if info.storage is not None and is_behind(folder.path, Storage(info.storage), folder.name):
            return Synced(folder.name, "elsewhere", "another machine has gone on with it: sync there")
    except StorageError as error:
        return Synced(folder.name, "waiting", error.message)
    with folder.lock():
        tracker = Tracker(folder.name, folder.path, uri, info.task.registered_name, folder.keep_rule)
        try:
            if folder.candidates() is not None and not is_recorded(folder.journal(), tracker):
                with mirrored(folder, lambda: None):  # else another machine would record it otherwise
                    record_finished(folder, tracker)
            problem = tracker.drain(_AWAY_AFTER_S)
        except StorageError as error:
            problem = error.message
        finally:
            tracker.close(0.0)
    return Synced(folder.name, "waiting" if problem else "complete", problem)
