"""Resuming a study from its storage, on whatever machine."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from loraxs_search.errors import StudyError, unknown_name
from loraxs_search.home import ensure_dir, write_atomic
from loraxs_search.mlflow_uri import resolve_uri, sqlite_path
from loraxs_search.records.codec import to_json
from loraxs_search.studies.folder import StudyFolder, studies_root
from loraxs_search.studies.info import StudyInfo, check_name, parse_info
from loraxs_search.studies.journal import Journal
from loraxs_search.studies.lease import Lease
from loraxs_search.studies.mirror import file_of, in_copy_order, is_behind, read_copy
from loraxs_search.studies.storage import Storage

_OF_ONE_MLFLOW_STORE = ("mlflow.offset", "tracking.runs.jsonl")


def check_new_in(storage: Storage, name: str) -> None:
    """Refuse a name that a study in the storage has.

    Raises:
        StudyError: it has.
    """
    if storage.get(f"{name}/study.json") is not None:
        raise StudyError(
            f"Study {name!r} already exists in {storage.uri}.",
            hint=f"continue with `loraxs-search resume {name} --storage {storage.uri}`, or choose another with --name",
        )


def fetch(name: str, storage: Storage) -> StudyFolder:
    """Bring the study folder up to the storage's copy, if that is ahead of it or there is none here.

    One that began here and has not been copied yet is all here.

    An embedded MLflow store stays on the machine that had it: on another one the study's records are written anew into
    its own. So are they here, when others continued with the study meanwhile; those that it has change nothing.

    Raises:
        StudyError: the storage has no such study, it is of a later version, another driver is at work, or both sides
            continued.
    """
    content = storage.get(f"{name}/study.json")
    if content is None:
        if StudyFolder.exists(name) and _is_at((folder := StudyFolder.open(name)).info, storage):
            return folder  # its driver died, or was refused, before the first copy was whole
        known = sorted({key.partition("/")[0] for key in storage.keys("") if key.endswith("/study.json")})
        raise StudyError(unknown_name("study", name, known), hint=f"these are the studies in {storage.uri}")
    place = f"{storage.uri}/{name}/study.json"
    with contextlib.ExitStack() as held:
        info = parse_info(content, place)
        check_name(info, name, f"{storage.uri}/{name}")
        if (here := _folder_here(name, storage, info.study_id)) is not None:
            held.enter_context(here.lock())
        held.enter_context((lease := Lease(storage, name)).held())
        path = studies_root() / name
        if here is not None and not is_behind(path, storage, name):
            return here
        # Of an embedded store, what came would speak of another machine's, whose path may be that of one here.
        _download(name, storage, path, without=() if sqlite_path(info.tracking_uri) is None else _OF_ONE_MLFLOW_STORE)
        lease.check()
        info = parse_info(storage.get(f"{name}/study.json") or content, place)
        _write_study(path, replace(info, storage=storage.uri))
        return StudyFolder(path)


def _folder_here(name: str, storage: Storage, study_id: str) -> StudyFolder | None:
    if not StudyFolder.exists(name):
        return None
    folder = StudyFolder.open(name)
    if folder.info.study_id != study_id:
        raise StudyError(
            f"Study {name!r} of {storage.uri} must not meet another of its name, but {folder.path} is one.",
            hint="set LORAXS_HOME to another folder, or move that one away",
        )
    return folder


def _is_at(info: StudyInfo, storage: Storage) -> bool:
    return (info.storage or "").rstrip("/") == storage.uri.rstrip("/")


def _download(name: str, storage: Storage, path: Path, without: Collection[str]) -> None:
    shutil.rmtree(path / "tune", ignore_errors=True)
    for key in without:  # first: a fetch that is cut short behind the journal is not begun again
        (path / key).unlink(missing_ok=True)
    ensure_dir(path / "snapshots")
    keys = {file_of(key.removeprefix(f"{name}/")) for key in storage.keys(name)}
    for key in in_copy_order(keys - {"study.json", *without}):
        if (content := read_copy(storage, name, key)) is not None:
            write_atomic(path / key, content)
    known = Journal(path / "journal.jsonl").records
    for snapshot in (path / "snapshots").iterdir():  # a copy that was cut short may have one of a trial yet unknown:
        if snapshot.name.partition(".")[0] not in known:  # the trial that gets its number here is another
            snapshot.unlink()


def _write_study(path: Path, info: StudyInfo) -> None:
    """Write `study.json`, with which the study exists here."""
    embedded = sqlite_path(info.tracking_uri)
    if embedded is not None and not embedded.exists():
        info = replace(info, tracking_uri=resolve_uri())
    write_atomic(path / "study.json", to_json(info, indent=2))
