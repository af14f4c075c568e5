"""Files that the trials of a study start from, by content: such as an adapter's matrices.

A study keeps its own in its folder; a host puts them here, in the state folder of its node, where trials find them.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from loraxs_search.errors import StudyError
from loraxs_search.home import disk_faults, file_sha256, home, write_atomic

_logger = logging.getLogger(__name__)
START, PROBE = "start_from", "linear_probe"  # names in a study: of an adapter's tensors, of an output layer for heads


NOTHING = hashlib.sha256(b"").hexdigest()  # in a study, of an asset that could not be had: its trials go without it


def _asset_path(digest: str) -> Path:
    """Return where an asset lies on this machine; it may not be there."""
    return home() / "assets" / digest[:2] / f"{digest}.safetensors"


def lacks(digest: str) -> bool:
    """Whether an asset is not on this machine, or is damaged; a damaged one is removed."""
    path = _asset_path(digest)
    try:
        with disk_faults(path):
            actual = file_sha256(path)
    except FileNotFoundError:
        return True
    if actual == digest:
        return False
    _logger.warning("%s is damaged; it is fetched again.", path)
    path.unlink(missing_ok=True)
    return True


def keep(content: bytes) -> str:
    """Put an asset where trials look for it, and return its digest.

    Raises:
        HomeError: the folder cannot be written.
    """
    digest = hashlib.sha256(content).hexdigest()
    path = _asset_path(digest)
    if not path.exists():
        write_atomic(path, content)
    return digest


def existing_path(digest: str) -> Path:
    """Return the file of an asset.

    Raises:
        StudyError: it is not on this machine.
    """
    path = _asset_path(digest)
    if not path.exists():
        raise StudyError(
            f"A trial's asset must be on its machine, but {path} is not there.",
            hint="continue with the study by `loraxs-search resume`, which brings its assets to every node",
        )
    return path
