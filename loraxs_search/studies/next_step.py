"""What a study is waiting for, for who asks for an adapter that is not there yet."""

from __future__ import annotations

from loraxs_search.errors import StudyError
from loraxs_search.mlflow_uri import redact
from loraxs_search.studies.folder import StudyFolder, list_studies


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
