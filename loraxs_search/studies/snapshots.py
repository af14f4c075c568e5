"""Trial snapshots as files: opaque bytes here, except for the reports in their header."""

from __future__ import annotations

import json
from pathlib import Path

from loraxs_search.errors import StudyError
from loraxs_search.log.event_log import DAMAGED_HINT
from loraxs_search.records import TrialReport, check_trial_id, from_json
from loraxs_search.safetensors_header import entry_of


def read_reports(snapshot: bytes) -> tuple[TrialReport, ...]:
    """Return all reports of a trial from its snapshot, without reading tensors.

    Raises:
        StudyError: the bytes are no snapshot.
    """
    try:
        return from_json(tuple[TrialReport, ...], json.dumps(entry_of(snapshot, "trial")["reports"]))
    except (ValueError, KeyError) as error:
        raise StudyError(f"A snapshot must be a safetensors file with reports, but: {error}.") from error


def is_older(snapshot: bytes, path: Path) -> bool:
    """Whether a snapshot is of an earlier step than the one in a file, which may be missing or damaged."""
    try:
        return _last_step(snapshot) < _last_step(path)
    except (OSError, ValueError, LookupError):
        return False


def _last_step(source: Path | bytes) -> int:
    reports = entry_of(source, "trial")["reports"]
    return int(reports[-1]["step"]) if reports else 0


def check_owner(snapshot: bytes, study: str, trial_id: str) -> bytes:
    """Return a snapshot that is of this trial of this study; those that 0.1.0 wrote name no study.

    Raises:
        StudyError: it is of another one, or the bytes are no snapshot.
    """
    try:
        header = entry_of(snapshot, "trial")
        owner = header.get("study", study), header["trial_id"]
    except (ValueError, KeyError) as error:
        raise StudyError(
            f"The state of trial {trial_id} must be a snapshot, but: {error}.", hint=DAMAGED_HINT
        ) from error
    if owner != (study, trial_id):
        raise StudyError(
            f"The state of trial {trial_id} of study {study!r} must be its own, but it is that of trial {owner[1]} of"
            f" study {owner[0]!r}.",
            hint=DAMAGED_HINT,
        )
    return snapshot


def kept_path(folder: Path, trial_id: str, step: int) -> Path:
    """Return where the snapshot of a step is kept beside the last one."""
    return folder / f"{check_trial_id(trial_id)}.step-{step}.safetensors"


def kept_paths(folder: Path, trial_id: str) -> list[Path]:
    """Return all snapshots that are kept beside a trial's last one."""
    return sorted(folder.glob(f"{check_trial_id(trial_id)}.step-*.safetensors"))


def is_kept(name: str) -> bool:
    """Whether a file of this name is a snapshot that is kept beside a last one."""
    return ".step-" in name


def snapshot_path(folder: Path, trial_id: str) -> Path:
    """Return where the snapshot of `trial_id` is kept in `folder`."""
    return folder / f"{check_trial_id(trial_id)}.safetensors"
