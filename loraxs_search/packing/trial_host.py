"""The trial host with one slot: one base and its factors loaded on one device, trials one after the other.

States of trials that are too large to travel with each report stay on their node. What travels in their place is a
snapshot without tensors that names the node's file. A host that has the file continues from it; another one trains from
the start again, and what it reports says so. Nothing else is lost: the same seed on the same rows gives the same trial.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from loraxs_search.errors import StudyError, TrialCancelledError, UsageError
from loraxs_search.home import ensure_dir, home, write_atomic
from loraxs_search.methods import method_of
from loraxs_search.packing.loaded_base import LoadedBase
from loraxs_search.packing.slot import check_target_modules
from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.host import Answers, Confirmation, HostInfo, LinearProbe
from loraxs_search.records.literals import MAX_STATE_BYTES, Basis, Precision, Split
from loraxs_search.records.promotion import Baseline
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport, TrialSpec
from loraxs_search.trial.run import TrialRun, attach, detach
from loraxs_search.trial.snapshot import Snapshot

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

_KEPT = 2  # the one that was just written, and the one before: the caller may never see the latest reference
_WEEK_S = 7 * 24 * 3600.0


class _NodeStates:
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
        if Path(name).name != name:
            return None
        try:
            content = path.read_bytes()
            return Snapshot.from_bytes(content) if _digest(content) in name.split(".") else None
        except (OSError, StudyError):  # another host has made room, or the disk is broken
            return None

    def _make_room(self, own: str, num_bytes: int, num_kept: int) -> None:
        """Remove this trial's older states, those of a week ago, and the oldest while the disk is too full.

        The disk may be another machine's, with another time, and a clock may have been wrong for a while: a state is a
        week old where the newest one and this machine's clock both say so.
        """
        files = list[tuple[float, Path]]()
        for path in ensure_dir(self._folder).glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another host of this node makes room, too
                files.append((path.stat().st_mtime, path))
        files.sort()
        oldest_first = [path for _, path in files]
        mine = [path for path in oldest_first if path.name.startswith(f"{own}.")]
        now = min([time.time(), *(modified for modified, _ in files[-1:])])
        old = [path for modified, path in files if now - modified > _WEEK_S]
        for path in {*mine[: max(0, len(mine) - num_kept)], *old}:
            path.unlink(missing_ok=True)
        for path in oldest_first:
            if shutil.disk_usage(self._folder).free > 2 * num_bytes:
                return
            if path not in mine:
                path.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


class TrialHost:
    """Advances trials, one at a time, on a base that is loaded once.

    Each `advance` returns the trial's snapshot, and restores the caller's when another trial is active, so a host can
    be lost without losing a trial. Not thread-safe: one caller at a time, except for `baselines`, `cancel`
    and `steps`.

    Args:
        device: `auto` takes the first accelerator this process sees, else the CPU.
        max_state_bytes: Larger states stay on the node.
    """

    def __init__(
        self,
        base: BaseModelRef,
        task: Task,
        *,
        precision: Precision = "auto",
        device: str = "auto",
        max_state_bytes: int = MAX_STATE_BYTES,
    ) -> None:
        self._loaded = LoadedBase(base, task, precision=precision, device=device)
        self._states = _NodeStates(max_state_bytes)
        self._active: TrialRun | None = None
        self._advancing, self._is_cancelled = "", False

    def info(self, task: Task | None = None, *, anew: bool = False) -> HostInfo:
        """Describe base, data and device.

        Args:
            anew: Read the task's rows again; trials go on with them if they have changed.
        """
        return self._on_bare_base(lambda: self._loaded.info(task, anew=anew))

    def base_changed(self) -> bool:
        """Whether the base's weights on disk are others than those that were loaded."""
        return self._loaded.base_changed()

    def can_serve(self, task: Task) -> bool:
        """Whether a task is the one it began with, however its reports are scored."""
        return self._serves(task)

    def close(self) -> None:
        """Take the active trial off the base."""
        self._park()

    def decompose(self, names: Sequence[str], rank: int, basis: Basis) -> None:
        """Get the factors of these layers ahead of their use."""
        self._on_bare_base(lambda: self._loaded.decompose(names, rank, basis))

    def advance(
        self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Task | None = None
    ) -> tuple[TrialReport, bytes]:
        """Train `spec` up to step `until` and score it; return the report and the state to keep.

        Args:
            snapshot: The trial's last state, None when it has none; a host whose active trial it is ignores it.

        Raises:
            TrialDivergedError: the trial has no finite loss or metric; the host is ready for the next one.
            TrialCancelledError: `cancel` named it.
        """
        self._advancing, self._is_cancelled = spec.name, False
        try:
            run = self._activate(spec, Snapshot.from_bytes(snapshot) if snapshot else None, task)
            report = run.advance(until, self._check_wanted)
        except Exception:
            self.release(spec)
            raise
        finally:
            self._advancing = ""
        is_last = run.done and not method_of(spec.hyperparameters).has_adapter
        return report, self._states.kept(spec, run.snapshot(), is_last=is_last)

    def cancel(self, names: Collection[str]) -> None:
        """End the trial that is being advanced before its next step, if it is one of these; from any thread."""
        if self._advancing in names:
            self._is_cancelled = True

    def steps(self) -> Mapping[str, int]:
        """Return the steps of the trial that is being advanced; from any thread."""
        run, name = self._active, self._advancing
        return {name: run.step} if run is not None and name == run.spec.name else {}

    def release(self, spec: TrialSpec) -> None:
        """Take a trial off the base if it is the active one."""
        if self._active is not None and self._active.spec.name == spec.name:
            self._park()

    def confirm(self, spec: TrialSpec, snapshot: bytes, task: Task | None = None) -> Confirmation:
        """Return a trained adapter's files, as it will be loaded."""
        return self._on_bare_base(lambda: self._loaded.confirm(spec, self._whole(spec, snapshot, task), task))

    def answer(self, spec: TrialSpec, snapshot: bytes, rows: range, task: Task | None = None) -> Answers:
        """Return a trained adapter's answers to these test rows, as it will be loaded."""
        return self._on_bare_base(lambda: self._loaded.answer(spec, self._whole(spec, snapshot, task), rows, task))

    def answer_without_adapter(self, split: Split, rows: range, shots: int, task: Task | None = None) -> Answers:
        """Return the answers of the base without an adapter, as it will be loaded."""
        return self._on_bare_base(lambda: self._loaded.answer_without_adapter(split, rows, shots, task))

    def baselines(self, task: Task | None = None) -> tuple[Baseline, ...]:
        """Return what simple models reach on the task's rows; the caller's thread computes while trials advance."""
        return self._loaded.baselines(self._in_turn(lambda: self._loaded.prepared(task)))

    def linear_probe(self, task: Task | None = None) -> LinearProbe:
        """Return the output layer that heads of a task may start from."""
        return self._on_bare_base(lambda: self._loaded.linear_probe(task))

    def factor_file(self, key: str) -> bytes:
        """Return a factor file, as `Confirmation.factors` names it."""
        return self._loaded.factor_file(key)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _in_turn(self, job: Callable[[], ResultT]) -> ResultT:
        """Run a job that nothing else may run beside."""
        return job()

    def _on_bare_base(self, job: Callable[[], ResultT]) -> ResultT:
        """Run a job on the base as it was loaded, with no trial on it."""

        def run() -> ResultT:
            self._park()
            return job()

        return self._in_turn(run)

    def _whole(self, spec: TrialSpec, snapshot: bytes, task: Task | None) -> Snapshot:
        """Return the whole of a trial's state, trained again where it stayed on a node that is lost; the base is bare.

        Raises:
            TrialDivergedError: training it again does not succeed.
        """
        given = Snapshot.from_bytes(snapshot)
        state = self._states.whole(given)
        assert state is not None  # one was given
        if state.parameters:
            return state
        try:
            run = self._activate(spec, given, task)
            run.train(given.step)
            return run.snapshot()
        finally:
            self._park()

    def _activate(self, spec: TrialSpec, snapshot: Snapshot | None, task: Task | None) -> TrialRun:
        if task is not None and not self._serves(task):
            raise UsageError(
                f"A host of lone trials serves one task, but got {task.name} beside {self._loaded.task.name}.",
                hint="set `search.pack_size` to 2 or more to search several tasks on one device",
            )
        data = self._loaded.prepared(task)
        check_target_modules(spec, [module.name for module in self._loaded.modules])
        run = self._active
        step = snapshot.step if snapshot else 0
        if run is not None and run.spec == spec and run.data is data and run.step == step:
            return run
        self._park()
        state = self._states.whole(snapshot)
        model = attach(self._loaded.model, spec, self._loaded.factors, data.kind.outputs)
        try:
            self._active = TrialRun(spec, model, data, self._loaded.device, state)
        except BaseException:
            detach(model, spec)  # the next trial shares the base
            raise
        return self._active

    def _serves(self, task: Task | None) -> bool:
        """Whether a task is the one it began with, whatever its reports score on however many validation rows."""
        first = self._loaded.task
        reported = {name: getattr(first, name) for name in ("validation_rows", "report_metric", "report_direction")}
        return task is None or replace(self._loaded.with_pooling(task), **reported) == first

    def _check_wanted(self) -> None:
        if self._is_cancelled:
            raise cancelled(self._advancing)

    def _park(self) -> None:
        if self._active is not None:
            detach(self._active.model, self._active.spec)
            self._active = None


def cancelled(name: str) -> TrialCancelledError:
    """Return the answer to who waits for a trial that a user stopped."""
    return TrialCancelledError(f"Trial {name} was stopped before its next step.")
