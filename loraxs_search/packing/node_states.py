"""States of trials that are too large to travel with each report: they stay on their node.

What travels in their place is a snapshot without tensors that names the node's file. A host that has the file goes on
from it; another one trains from the start again, and what it reports says so. Nothing else is lost: the same seed on
the same rows gives the same trial.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

from loraxs_search.errors import StudyError
from loraxs_search.home import ensure_dir, home, write_atomic
from loraxs_search.records import TrialSpec
from loraxs_search.trial import Snapshot

log = logging.getLogger(__name__)

_KEPT = 2  # the one that was just written, and the one before: the caller may never see the latest reference
_WEEK_S = 7 * 24 * 3600.0


class NodeStates:
    """Large states in `home()/states`, by content; any host of the node reads them.

    Args:
        max_bytes: States up to this travel with their reports.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def kept(self, spec: TrialSpec, snapshot: Snapshot, *, is_last: bool = False) -> bytes:
        """Return what travels of a state: the whole of it, or a reference to the file that it is now in.

        Args:
            is_last: Whether nothing will be asked of this trial any more: then a large state is in no file.
        Raises:
            HomeError: the file cannot be written.
        """
        content = snapshot.to_bytes()
        if len(content) <= self._max_bytes:
            return content
        own = hashlib.sha256(spec.name.encode()).hexdigest()[:16]
        name = f"{own}.{snapshot.step}.{_digest(content)}.safetensors"
        self._make_room(own, len(content), 0 if is_last else _KEPT - 1)
        if not is_last:
            write_atomic(self._folder / name, content)
        return replace(snapshot, parameters={}, moments={}, elsewhere=name).to_bytes()

    def whole(self, snapshot: Snapshot | None) -> Snapshot | None:
        """Return the whole of a state; that of a trial at its start, with its reports, where it is on no disk here."""
        if snapshot is None or not snapshot.elsewhere:
            return snapshot
        state = self._read(snapshot.elsewhere)
        if state is not None:
            return state
        log.warning(
            "The state of trial %s at step %d stayed on a node that is lost: it trains from the start again.",
            snapshot.trial_id,
            snapshot.step,
        )
        retrained = snapshot.retrained_steps + snapshot.step
        return replace(snapshot, step=0, num_tokens=0, elsewhere="", retrained_steps=retrained)

    @property
    def _folder(self) -> Path:
        return home() / "states"

    def _read(self, name: str) -> Snapshot | None:
        path = self._folder / name
        if Path(name).name != name or not path.is_file():
            return None
        content = path.read_bytes()
        if _digest(content) not in name.split("."):
            return None
        try:
            return Snapshot.from_bytes(content)
        except StudyError:
            return None

    def _make_room(self, own: str, num_bytes: int, num_kept: int) -> None:
        """Remove this trial's older states, those of a week ago, and the oldest ones while the disk is too full."""
        files = list[tuple[float, Path]]()
        for path in ensure_dir(self._folder).glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another host of this node makes room, too
                files.append((path.stat().st_mtime, path))
        oldest_first = [path for _, path in sorted(files)]
        mine = [path for path in oldest_first if path.name.startswith(f"{own}.")]
        old = [path for modified, path in files if time.time() - modified > _WEEK_S]
        for path in {*mine[: max(0, len(mine) - num_kept)], *old}:
            path.unlink(missing_ok=True)
        for path in oldest_first:
            if shutil.disk_usage(self._folder).free > 2 * num_bytes:
                return
            if path not in mine:
                path.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
