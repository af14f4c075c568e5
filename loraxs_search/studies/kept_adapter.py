"""Adapters by the names of their trials."""

from __future__ import annotations

from pathlib import Path

from loraxs_search.errors import StudyError, unknown_name
from loraxs_search.studies.folder import StudyFolder, list_studies


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
