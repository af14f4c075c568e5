"""Removing a study: from this machine, and from MLflow where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraxs_search.errors import StudyError
from loraxs_search.home import remove_whole
from loraxs_search.housekeeping._base import StoredItem
from loraxs_search.steering import describe, open_commands, steered
from loraxs_search.studies import StudyFolder, idle_elsewhere
from loraxs_search.tracking import has_waiting, remove_runs, resolve_uri


@dataclass(frozen=True)
class RemovedStudy:
    """What went with a study, or with a dry run would go.

    Args:
        num_runs: Runs that were deleted in MLflow; None where they were not asked for, and stay.
        kept_runs: Registered versions whose runs stay.
        storage: Where a copy of the study stays; None where there is none.
    """

    study: str
    path: Path
    num_bytes: int
    num_runs: int | None = None
    kept_runs: tuple[str, ...] = ()
    storage: str | None = None


def remove_study(name: str, *, runs: bool = False, force: bool = False, dry_run: bool = False) -> RemovedStudy:
    """Remove a study's folder, and with `runs` its runs in MLflow first.

    Registered versions and pulled adapters stand on nothing in it. Nobody may be at work on it, here or, where it has a
    storage, elsewhere; its copy there stays. A process that is killed meanwhile leaves the study whole, or a folder
    that `gc` removes; repeat it to remove the runs that are left.

    Args:
        force: Even where records wait for MLflow, which are lost then.
    Raises:
        StudyError: there is no such study, somebody is at work on it, or its records have not reached MLflow.
        StorageError: its storage cannot say whether somebody is at work on it.
        TrackingError: MLflow does not answer, and its runs are to go.
    """
    folder = StudyFolder.open(name)
    if folder.path.is_symlink():
        raise StudyError(
            f"A study must lie in the state folder, but {folder.path} is a link.", hint="remove it by hand"
        )
    info, item = folder.info, StoredItem.of(folder.path)
    with folder.lock(), idle_elsewhere(info.storage, name):
        if not force and has_waiting(folder.path):
            raise StudyError(
                f"A study's records must be in MLflow before it goes, but some of {name!r} still wait.",
                hint=f"bring them over with `loraxs-search sync {name}`, or lose them with --force",
            )
        if not force and (waiting := open_commands(steered(folder, folder.journal()))):
            raise StudyError(
                f"A study's commands must be answered before it goes, but `{describe(waiting[0])}` waits in {name!r}.",
                hint=f"carry it out with `loraxs-search resume {name}`, or lose it with --force",
            )
        removed = RemovedStudy(name, folder.path, item.num_bytes, storage=info.storage)
        if runs:
            uri = resolve_uri(info.tracking_uri)
            count, kept = remove_runs(uri, folder.path, info.task.name, dry_run=dry_run)
            removed = RemovedStudy(name, folder.path, item.num_bytes, count, kept, info.storage)
        if not dry_run:
            remove_whole(folder.path)
    return removed
