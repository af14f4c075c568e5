"""What a task or a name leads to on this machine: the command that brings a study on, an adapter that was kept."""

from __future__ import annotations

from pathlib import Path

from loraxs_search.errors import StudyError, TrackingError, unknown_name
from loraxs_search.home import home
from loraxs_search.mlflow_uri import redact, resolve_uri, sqlite_path
from loraxs_search.studies.folder import StudyFolder, list_studies


def store_of(study: StudyFolder) -> str:
    """Return the address of the MLflow store that a study records in.

    Nothing is asked, and nothing made. The embedded store that is in use now may be missing: the first search makes it,
    or one that was fetched from a storage.

    Raises:
        TrackingError: it is another database, which is gone: a new one in its place would know no run and no champion.
    """
    uri = resolve_uri(study.info.tracking_uri)
    path = sqlite_path(uri)
    if path is None or path.exists() or uri == resolve_uri():
        return uri
    hint = "bring the file back"
    if not path.parent.exists():
        hint = f"if the home was moved, leave a link: `ln -s {home()} {path.parent}`; else {hint}"
    raise TrackingError(f"The store that study {study.name!r} records in must be there, but {path} is not.", hint=hint)


def next_step(study: StudyFolder) -> str:
    """Return the command that brings a study nearer to a champion."""
    if study.candidates() is not None:
        return f"let its rule decide with `loraxs-search promote {study.name}`"
    if study.is_running():
        return f"wait for the search to end, and watch it with `loraxs-search status {study.name}`"
    return f"continue with `loraxs-search resume {study.name}`"


def next_step_of_task(task: str, uri: str) -> str | None:
    """Return what the newest study of a task in this registry is waiting for; None if there is no study of it."""
    for name in list_studies():
        try:
            study = StudyFolder.open(name)
            if study.info.task.registered_name == task and redact(study.info.tracking_uri) == redact(uri):
                return next_step(study)
        except StudyError:  # a damaged study hides no other
            continue
    return None


def kept_adapter(name: str) -> Path | None:
    """Return the folder of an adapter that a study of this machine has kept; None if no name begins so.

    Args:
        name: `STUDY/TRIAL`.
    Raises:
        StudyError: there is no such study, or it has not kept that trial's adapter.
    """
    study, slash, trial = name.partition("/")
    if not study or not slash or study.startswith((".", "~")):
        return None
    if study not in (studies := list_studies()):
        hint = f"STUDY/TRIAL is a trial of a study on this machine; write ./{name} for the folder"
        raise StudyError(unknown_name("study", study, studies), hint=hint)
    adapters = StudyFolder.open(study).adapters_path
    kept = sorted(path.parent.name for path in adapters.glob("*/manifest.json"))
    if trial not in kept:
        hint = f"a search keeps the adapters of its best trials, at its end: see `loraxs-search status {study}`"
        raise StudyError(unknown_name(f"{study}/TRIAL", trial, kept), hint=hint)
    return adapters / trial
