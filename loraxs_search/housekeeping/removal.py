"""Removing what nobody needs any more, and studies: whole, and saying what was kept and why."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from loraxs_search.errors import LoraxsError, StorageError, StudyError
from loraxs_search.home import file_lock, home, is_locked, remove_whole, unused
from loraxs_search.housekeeping.kinds import KINDS, Kind, Needs, StoredItem, gather_needs
from loraxs_search.steering import describe, open_commands, steered
from loraxs_search.studies.folder import StudyFolder, broken_studies, list_studies, studies_root
from loraxs_search.studies.lease import idle_elsewhere
from loraxs_search.studies.lookup import store_of
from loraxs_search.tracking.store import has_waiting, remove_runs

_A_SEARCH = "a search that is at work on this machine"


@dataclass(frozen=True)
class Collected:
    """What became of an item, or with a dry run what would become of it.

    Args:
        kept: Why it stays; empty where it goes.
    """

    kind: str
    path: Path
    num_bytes: int
    used_at: float
    kept: str = ""


def collect(older_than_s: float, *, dry_run: bool = False, tracking_uri: str | None = None) -> list[Collected]:
    """Remove what nobody needs and nobody has used for so long, and return every item that was looked at.

    What registered versions, pulled names, studies and running searches need stays, and so does what leads out of the
    state folder. A process that is killed meanwhile leaves whole items, and what is half removed goes the next time. Of
    two at once each item goes once.

    Raises:
        HomeError: the state folder cannot be written.
        TrackingError: the address of MLflow is malformed.
    """
    root = home()
    if not root.is_dir():
        return []
    with file_lock(root / ".gc.lock"), unused() as idle:
        needs = gather_needs(root, tracking_uri)
        judged = list(_judged(root, needs, older_than_s, idle))
        return [done if dry_run or done.kept else _remove(kind, item, done) for kind, item, done in judged]


def _judged(root: Path, needs: Needs, older_than_s: float, idle: bool) -> Iterator[tuple[Kind, StoredItem, Collected]]:
    now = time.time()
    for kind in KINDS:
        for item in kind.items(root, needs):
            recent = "" if item.used_at <= now - older_than_s else "used not long ago"
            kept = _why_kept(root, kind, item, needs, idle) or recent
            yield kind, item, Collected(kind.name, item.paths[0], item.num_bytes, item.used_at, kept)


def _why_kept(root: Path, kind: Kind, item: StoredItem, needs: Needs, idle: bool) -> str:
    if any(not path.parent.resolve().is_relative_to(root.resolve()) or path.is_symlink() for path in item.paths):
        return "a link leads out of the state folder"
    if item.needed_by:
        return f"needed by {item.needed_by}"
    if kind.used_by_searches and not idle:
        return f"may be needed by {_A_SEARCH}"
    return needs.unknown if kind.needs_registry else ""


def _remove(kind: Kind, item: StoredItem, planned: Collected) -> Collected:
    try:
        with kind.guarded(item):
            if 0.0 < item.used_at < StoredItem.of(*item.paths).used_at:  # since it was looked at; 0 goes at once
                return replace(planned, kept="used just now")
            for path in item.paths:
                remove_whole(path)
    except LoraxsError as error:
        return replace(planned, kept=error.message)
    return planned


@dataclass(frozen=True)
class _RemovedStudy:
    """What went with a study, or with a dry run would go.

    Args:
        num_runs: Runs that were deleted in MLflow; None if they were not asked for, and stay.
        kept_runs: Registered versions whose runs stay.
        storage: Where a copy of the study stays; None if there is none.
        unasked: Why the storage could not say whether a driver elsewhere is at work; empty where it could.
        unread: Why the study could not be read: its runs and its storage are not known then; empty where it could.
    """

    study: str
    path: Path
    num_bytes: int
    num_runs: int | None = None
    kept_runs: tuple[str, ...] = ()
    storage: str | None = None
    unasked: str = ""
    unread: str = ""


def remove_study(name: str, *, runs: bool = False, force: bool = False, dry_run: bool = False) -> _RemovedStudy:
    """Remove a study's folder, and with `runs` its runs in MLflow first.

    Registered versions and pulled adapters stand on nothing in it. Nobody may be at work on it, here or, where it has a
    storage, elsewhere; its copy there stays. A process that is killed meanwhile leaves the study whole, or a folder
    that `gc` removes; repeat it to remove the runs that are left.

    Args:
        force: Even where records wait for MLflow, which are lost then, its storage does not answer, or the study cannot
            be read.
    Raises:
        StudyError: there is no such study, it is in use, it cannot be read, or its records have not
            reached MLflow.
        StorageError: its storage cannot say whether it is in use.
        TrackingError: MLflow does not answer or is gone, and its runs are to go.
    """
    if (path := studies_root() / name).is_symlink():
        raise StudyError(f"A study must lie in the state folder, but {path} is a link.", hint="remove it by hand")
    try:
        _check_whole(name)
        folder = StudyFolder.open(name)
    except StudyError as error:
        if not force or name not in (*list_studies(), *broken_studies()):
            raise
        return _remove_unread(name, path, error.message, dry_run=dry_run)
    info, item = folder.info, StoredItem.of(folder.path)
    with folder.lock(), _idle_elsewhere(info.storage, name, force=force) as unasked:
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
        removed = _RemovedStudy(name, folder.path, item.num_bytes, storage=info.storage, unasked=unasked)
        if runs:
            count, kept = remove_runs(store_of(folder), folder.path, info.task.registered_name, dry_run=dry_run)
            removed = replace(removed, num_runs=count, kept_runs=kept)
        if not dry_run:
            remove_whole(folder.path)
    return removed


def _check_whole(name: str) -> None:
    """Refuse what is left of a study that was never whole here, or was removed while another command wrote into it.

    Raises:
        StudyError: the folder has no `study.json`.
    """
    if name in broken_studies():
        raise StudyError(
            f"Study {name!r} must have a study.json, but {studies_root() / name} has none.",
            hint=f"look at what is in it, then remove it with `loraxs-search studies rm {name} --force`",
        )


@contextlib.contextmanager
def _idle_elsewhere(storage: str | None, name: str, *, force: bool) -> Iterator[str]:
    """Keep drivers on other machines from a study; yield why that cannot be, where `force` goes without it.

    Raises:
        StudyError: one is at work on it.
        StorageError: the storage cannot be asked, and must be.
    """
    unasked = ""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(idle_elsewhere(storage, name))
        except StorageError as error:
            if not force:
                hints = [error.hint, "if the storage is gone for good, add --force"]
                raise StorageError(error.message, hint="; ".join(hint for hint in hints if hint)) from error
            unasked = error.message
        yield unasked


def _remove_unread(name: str, path: Path, why: str, *, dry_run: bool) -> _RemovedStudy:
    """Remove the folder of a study that cannot be read, unless a process on this machine works on it.

    Raises:
        StudyError: one does.
    """
    removed = _RemovedStudy(name, path, StoredItem.of(path).num_bytes, unread=why)
    lock = path / "study.lock"
    if is_locked(lock):
        raise StudyError(
            f"Study {name!r} must have one driver at a time, but another process is at work on it.",
            hint="wait until it has ended",
        )
    if not dry_run:
        with file_lock(lock):
            remove_whole(path)
    return removed
