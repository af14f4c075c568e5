"""Trial snapshots as files: opaque bytes here, except for the reports in their header."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from loraxs_search.errors import StudyError
from loraxs_search.records import TrialReport, from_json


def read_reports(snapshot: bytes) -> tuple[TrialReport, ...]:
    """Return all reports of a trial from its snapshot, without reading tensors.

    A snapshot is a safetensors file; the header is JSON behind its length in 8 bytes, little-endian, and its
    `__metadata__` holds the trial's header with its reports.

    Raises:
        StudyError: the bytes are no snapshot.
    """
    try:
        (length,) = struct.unpack_from("<Q", snapshot)
        metadata = json.loads(snapshot[8 : 8 + length])["__metadata__"]
        reports = json.loads(metadata["trial"])["reports"]
        return from_json(tuple[TrialReport, ...], json.dumps(reports))
    except (struct.error, ValueError, KeyError) as error:
        raise StudyError(f"A snapshot must be a safetensors file with reports, but: {error}.") from error


def snapshot_path(folder: Path, trial_id: str) -> Path:
    """Return where the snapshot of `trial_id` is kept in `folder`."""
    return folder / f"{trial_id}.safetensors"
