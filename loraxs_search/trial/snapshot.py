"""A trial's whole state as bytes: tensors and a JSON header in one safetensors file, nothing pickled.

States of trials that are too large to travel with each report stay on their node. What travels in their place is a
snapshot without tensors that names the node's file. A host that has the file continues from it; another one trains from
the start again, and what it reports says so. Nothing else is lost: the same seed on the same rows gives the same trial.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch

from loraxs_search.errors import StudyError
from loraxs_search.home import ensure_dir, home, write_atomic
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.trial import TrialReport, TrialSpec
from loraxs_search.safetensors_header import entry_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """The state that a `Slot` needs to continue exactly where it stopped.

    Args:
        parameters: Trained tensors by PEFT's names, as trained (float32).
        moments: AdamW's `exp_avg` and `exp_avg_sq` of each by `<kind>/<parameter name>`; empty before the first step.
        reports: Every report so far; the last one's step is the current step, but where a lost state is trained again.
        study: The study that the trial is of.
        elsewhere: The file of the trial's node that holds the tensors, where they are too large to travel.
        retrained_steps: Steps that were trained again since a state was lost with its node.
        frozen: `Method.frozen_cosines` of the adapter that was trained.
    """

    trial_id: str
    step: int
    parameters: Mapping[str, torch.Tensor]
    moments: Mapping[str, torch.Tensor]
    reports: tuple[TrialReport, ...]
    device_s: float
    num_tokens: int
    study: str = ""
    elsewhere: str = ""
    retrained_steps: int = 0
    frozen: tuple[float, ...] = ()

    def to_bytes(self) -> bytes:
        """Serialise; equal snapshots give equal bytes."""
        tensors = {f"parameter/{k}": v for k, v in self.parameters.items()}
        tensors |= {f"moment/{k}": v for k, v in self.moments.items()}
        header = {
            "trial_id": self.trial_id,
            "step": self.step,
            "device_s": self.device_s,
            "num_tokens": self.num_tokens,
            "reports": self.reports,
        }
        header |= {
            name: value
            for name in ("study", "elsewhere", "retrained_steps", "frozen")
            if (value := getattr(self, name))
        }
        metadata = {"trial": to_json(header)}  # one entry: safetensors writes several in random order
        contiguous = {k: v.detach().to("cpu").contiguous() for k, v in sorted(tensors.items())}
        return safetensors.torch.save(contiguous, metadata)

    @classmethod
    def from_bytes(cls, content: bytes) -> Snapshot:
        """Read back what `to_bytes` wrote.

        Raises:
            StudyError: the bytes are damaged.
        """
        try:
            tensors = safetensors.torch.load(content)
            header = entry_of(content, "trial")
            reports = from_json(tuple[TrialReport, ...], json.dumps(header.pop("reports")))
            frozen = tuple(map(float, header.pop("frozen", ())))
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StudyError(f"A snapshot must be whole, but: {error}.") from error
        parameters, moments = (
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            for prefix in ("parameter/", "moment/")
        )
        return cls(parameters=parameters, moments=moments, reports=reports, frozen=frozen, **header)


# ---- large states stay in `home()/states`, by content; any host of the node reads them -------------------------------
_KEPT = 2  # the one that was just written, and the one before: the caller may never see the latest reference
_WEEK_S = 7 * 24 * 3600.0
_STATES = "states"


def keep_state(spec: TrialSpec, snapshot: Snapshot, max_bytes: int, *, is_last: bool = False) -> bytes:
    """Return what travels of a state: the whole of it, or a reference to the file that it is now in.

    A file takes the room of this trial's older states, those of a week ago, and the oldest while the disk is too full.
    The disk may be another machine's, with another time, and a clock may have been wrong for a while: a state is a week
    old where the newest one and this machine's clock both say so.

    Args:
        max_bytes: States up to this travel with their reports.
        is_last: Whether nothing will be asked of this trial any more: then a large state is in no file.
    Raises:
        HomeError: the file cannot be written.
    """
    content = snapshot.to_bytes()
    if len(content) <= max_bytes:
        return content
    own = hashlib.sha256(spec.name.encode()).hexdigest()[:16]
    files, folder = list[tuple[float, Path]](), home() / _STATES
    for path in ensure_dir(folder).glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # another host of this node makes room, too
            files.append((path.stat().st_mtime, path))
    files.sort()
    oldest_first = [path for _, path in files]
    mine = [path for path in oldest_first if path.name.startswith(f"{own}.")]
    now = min([time.time(), *(modified for modified, _ in files[-1:])])
    old = [path for modified, path in files if now - modified > _WEEK_S]
    for path in {*mine[: max(0, len(mine) - (0 if is_last else _KEPT - 1))], *old}:
        path.unlink(missing_ok=True)
    for path in oldest_first:
        if shutil.disk_usage(folder).free > 2 * len(content):
            break
        if path not in mine:
            path.unlink(missing_ok=True)
    name = f"{own}.{snapshot.step}.{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    if not is_last:
        write_atomic(folder / name, content)
    return replace(snapshot, parameters={}, moments={}, elsewhere=name).to_bytes()


def whole_state(snapshot: Snapshot | None) -> Snapshot | None:
    """Return the whole of a state; that of a trial at its start, with its reports, where it is on no disk here."""
    if snapshot is None or not snapshot.elsewhere:
        return snapshot
    name = Path(snapshot.elsewhere).name  # no folder of anyone's choice
    with contextlib.suppress(OSError, StudyError):  # another host has made room, or the disk is broken
        content = (home() / _STATES / name).read_bytes()
        if hashlib.sha256(content).hexdigest()[:32] in name.split("."):
            return Snapshot.from_bytes(content)
    log.warning(
        "The state of trial %s at step %d stayed on a node that is lost: it trains from the start again.",
        snapshot.trial_id,
        snapshot.step,
    )
    retrained = snapshot.retrained_steps + snapshot.step
    return replace(snapshot, step=0, num_tokens=0, elsewhere="", retrained_steps=retrained)
