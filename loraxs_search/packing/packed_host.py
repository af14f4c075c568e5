"""The host with many slots: all trials that wait share the next round."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch

from loraxs_search.base_model.packable import Sharing
from loraxs_search.base_model.sharing import probe_sharing
from loraxs_search.engine.planning import PassExecutor, workers_for
from loraxs_search.errors import LoraxsError
from loraxs_search.methods import method_of
from loraxs_search.packing import capacity
from loraxs_search.packing.loaded_base import LoadedBase
from loraxs_search.packing.pack import Pack
from loraxs_search.packing.slot import Slot
from loraxs_search.packing.trial_host import TrialHost, cancelled
from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.host import HostInfo, LargestTrial
from loraxs_search.records.literals import MAX_STATE_BYTES, Precision
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport, TrialSpec
from loraxs_search.trial.snapshot import Snapshot

# Trials that are in step are scored in one evaluation, and their scheduler decides about all of them at once. A trial
# that comes soon after the others have begun joins them, and they wait for it before they are scored; one that comes
# later starts when the next of them is scored.

# The share of the steps between two reports that a trial may lag behind, and still be waited for.
_LAG = 4


@dataclass(eq=False)
class AdvanceRequest:
    """One caller's `advance`, from its arrival to its answer; `task` is None for the host's first one.

    Args:
        may_start: Whether it may join at any time: others have been scored since it arrived.
    """

    spec: TrialSpec
    until: int
    snapshot: Snapshot | None
    task: Task | None = None
    may_start: bool = False
    answer: Future[tuple[TrialReport, bytes]] = field(default_factory=Future)
    assigned: Slot | None = None

    @property
    def slot(self) -> Slot:
        """The slot, once it has one."""
        assert self.assigned is not None
        return self.assigned

    @property
    def first_step(self) -> int:
        """The trial's step on arrival."""
        return self.snapshot.step if self.snapshot else 0

    @property
    def num_steps(self) -> int:
        """Steps from the trial's step on arrival to the requested one."""
        return min(self.until, self.spec.hyperparameters.max_steps) - self.first_step

    @property
    def steps_left(self) -> int:
        """Steps left to the requested one, once it has a slot."""
        return self.first_step + self.num_steps - self.slot.step

    @property
    def reached(self) -> bool:
        """Whether the trial has reached the requested step."""
        return self.steps_left <= 0


def admit(
    active: Sequence[AdvanceRequest], waiting: Sequence[AdvanceRequest], num_slots: int
) -> tuple[list[AdvanceRequest], list[AdvanceRequest]]:
    """Return the requests that join the round and those that continue waiting, both in order of arrival.

    A trial is in a pack once at most: a second caller (its first one may have died) waits for the first to be done.
    """
    inside = {request.spec.name for request in active}
    next_score = min((request.steps_left for request in active), default=None)
    admitted: list[AdvanceRequest] = []
    left: list[AdvanceRequest] = []
    for request in waiting:
        fits = len(inside) < num_slots and request.spec.name not in inside
        lag = request.num_steps - (next_score or 0)
        if fits and (next_score is None or request.may_start or lag <= request.num_steps // _LAG):
            inside.add(request.spec.name)
            admitted.append(request)
        else:
            left.append(request)
    return admitted, left


def scored_now(active: Sequence[AdvanceRequest]) -> list[AdvanceRequest]:
    """Return the requests that have reached their step; none while others are so near that they are waited for."""
    if any(0 < request.steps_left <= request.num_steps // _LAG for request in active):
        return []
    return [request for request in active if request.reached]


log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

LINGER_S = 0.05
_UNKNOWN = LargestTrial()


@dataclass
class _Job(Generic[ResultT]):
    """What runs between rounds, and answers whoever waits for it."""

    run: Callable[[], ResultT]
    answer: Future[ResultT] = field(default_factory=Future)

    def do(self) -> None:
        try:
            self.answer.set_result(self.run())
        except Exception as error:  # noqa: BLE001  # the caller handles it
            self.answer.set_exception(error)


class PackedHost(TrialHost):
    """A `Host` that advances many trials at once, of one task or several; None is the task that it began with.

    A trial whose layers cannot share passes is advanced as a `TrialHost` does it, between rounds.

    A separate thread does all computation but baselines: it forms a round of every trial that waits, so trials
    join and leave between rounds, and each caller gets its answer when its own trial is where it was asked to be. Up to
    `slots` trials stay on the device between calls.

    Args:
        slots: Trials in one round; callers beyond that wait for their turn, first come, first served. None means what
            suits the device, and that trials that cannot share a pass are advanced between rounds, unpacked. Too many
            for the device's memory become fewer, with a warning.
        largest: The largest trial to come, by which slots are counted.
        linger_s: How long a round waits for trials that may join it: any when there is nothing to do, otherwise those
            that have just been answered. Trials that continue together are scored together.
        max_state_bytes: Larger states of trials stay on the node.
        gather_s: How long the very first round waits for the next of the trials that are starting.

    Raises:
        BaseModelError: `slots` are given, and the base does not compute each row by itself.
    """

    def __init__(  # noqa: PLR0913  # each is a keyword
        self,
        base: BaseModelRef,
        task: Task,
        *,
        slots: int | None,
        largest: LargestTrial = _UNKNOWN,
        precision: Precision = "auto",
        device: str = "auto",
        linger_s: float = LINGER_S,
        gather_s: float = 0.0,
        max_state_bytes: int = MAX_STATE_BYTES,
    ) -> None:
        # oneDNN forgets kernels beyond this number, and a pack uses more of them than a lone trial; read at first use.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
        super().__init__(base, task, precision=precision, device=device, max_state_bytes=max_state_bytes)
        loaded, self._takes_turns = self._loaded, slots is None
        budget = capacity.token_budget(loaded.modules, loaded.dtype, loaded.device)
        executor = PassExecutor(*workers_for(loaded.device))
        sharing = _sharing(loaded, refuse=slots is not None)
        self._pack = Pack(
            loaded.model,
            loaded.factors,
            loaded.modules,
            max_tokens=budget,
            executor=executor,
            sharing=sharing,
        )
        self._full_slots = _full_slots(loaded, self._pack, largest.batch_size, executor.num_workers)
        if self._takes_turns and len(sharing.unpackable) == len(loaded.modules):
            self._full_slots = slots = 1
        wanted = self._full_slots if slots is None else slots
        self._num_slots = _fitting_slots(loaded, wanted, largest, executor.num_workers)
        self._linger_s, self._gather_s = linger_s, gather_s
        self._idle: dict[str, Slot] = {}  # by the trial's name, oldest use first
        self._changed = threading.Condition()
        self._arrived: list[AdvanceRequest] = []
        self._jobs: list[_Job[Any]] = []
        self._called = Counter[str]()  # how many callers of a trial wait for an answer
        self._cancelled: set[str] = set()
        self._steps: Mapping[str, int] = {}  # of the round's trials; replaced as a whole, so that any thread reads it
        self._closing, self._begun = False, False
        self._expected = 0
        self._worker = threading.Thread(target=self._work, name="packed-host", daemon=True)
        self._worker.start()

    def info(self, task: Task | None = None, *, anew: bool = False) -> HostInfo:
        """Describe base, data and device; rounds wait."""
        info = super().info(task, anew=anew)
        unpackable = frozenset[str]() if self._may_train_unpacked(task) else self._pack.unpackable
        slots, full = self._num_slots, self._full_slots
        return replace(info, num_slots=slots, full_slots=full, unpackable=unpackable)

    def can_serve(self, task: Task) -> bool:
        """Always: tasks share the base."""
        return True

    def advance(
        self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Task | None = None
    ) -> tuple[TrialReport, bytes]:
        """Train with all others that wait; trials that are in step are scored in one evaluation, as peers."""
        if self._trains_unpacked(spec, task):
            return self._on_bare_base(lambda: self._advance_unpacked(spec, until, snapshot, task))
        request = AdvanceRequest(spec, until, Snapshot.from_bytes(snapshot) if snapshot else None, task)
        with self._changed:
            self._refuse_when_closed()
            self._called[spec.name] += 1
            self._arrived.append(request)
            self._changed.notify_all()
        try:
            return request.answer.result()
        finally:
            with self._changed:
                self._called[spec.name] -= 1
                if not self._called[spec.name]:
                    del self._called[spec.name]
                    self._cancelled.discard(spec.name)  # too late for this call, and not meant for the next one

    def cancel(self, names: Collection[str]) -> None:
        """End these trials before the next round, whether they are in the pack, wait for it, or train unpacked."""
        super().cancel(names)
        with self._changed:
            self._cancelled.update(self._called.keys() & set(names))

    def steps(self) -> Mapping[str, int]:
        """Return the steps of the trials in the present round, and of one that trains unpacked."""
        return {**self._steps, **super().steps()}

    def close(self) -> None:
        """End the host's thread once all who wait are answered; the host takes no more calls."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._worker.join()

    # ---- the worker's side -------------------------------------------------------------------------------------------
    def _work(self) -> None:
        torch.get_num_threads()  # fixes this thread's number: another's setting would become its own
        active: list[AdvanceRequest] = []
        while True:
            arrived: list[AdvanceRequest] = []
            jobs: list[_Job[Any]] = []
            try:
                with self._changed:
                    self._await_work(active)
                    if self._closing and not (active or self._arrived or self._jobs):
                        break
                    if active or not self._jobs:  # requests that arrive during the jobs may begin together
                        arrived, self._arrived = admit(active, self._arrived, self._num_slots)
                    jobs, self._jobs = self._jobs, []
                for job in jobs:
                    job.do()
                active += [request for request in arrived if self._assign(request)]
                active = self._wanted(active)
                if active:
                    active = self._round(active)
                self._steps = {request.spec.name: request.slot.step for request in active}
            except Exception as error:  # noqa: BLE001  # memory may end anywhere; without this thread, nobody is answered
                _refuse((*active, *arrived, *jobs), error)
                active = []
        self._pack.clear()

    def _wanted(self, active: list[AdvanceRequest]) -> list[AdvanceRequest]:
        """Answer those who wait for a trial that was given up; return the requests of the round that are left."""
        with self._changed:
            names, self._cancelled = self._cancelled, set()
            if not names:
                return active
            unwanted = [request for request in (*active, *self._arrived) if request.spec.name in names]
            self._arrived = [request for request in self._arrived if request not in unwanted]
        for request in unwanted:
            request.answer.set_exception(cancelled(request.spec.name))
        return [request for request in active if request not in unwanted]

    def _await_work(self, active: list[AdvanceRequest]) -> None:
        """Wait for work; then briefly for trials that could share it, such as those that were just answered."""
        wanted, self._expected = min(self._expected + len(active), self._num_slots), 0
        if not active:
            self._changed.wait_for(lambda: bool(self._arrived or self._jobs or self._closing))
            wanted = self._num_slots
            self._gather()
        if wanted > len(active):
            self._changed.wait_for(
                lambda: len(active) + len(self._arrived) >= wanted or self._jobs or self._closing, self._linger_s
            )

    def _gather(self) -> None:
        """Before the first round, wait as long as trials keep coming: those that begin together stay in step."""
        arrived = 0
        while self._gather_s and not self._begun and arrived < len(self._arrived) < self._num_slots:
            arrived = len(self._arrived)
            self._changed.wait_for(functools.partial(self._more_than, arrived), self._gather_s)
        self._begun = self._begun or (bool(self._arrived) and not self._jobs)

    def _more_than(self, arrived: int) -> bool:
        return len(self._arrived) > arrived or bool(self._jobs) or self._closing

    def _assign(self, request: AdvanceRequest) -> bool:
        """Give a request its slot; False where it cannot have one and is answered with the reason."""
        try:
            data = self._loaded.prepared(request.task)
            slot = self._idle.pop(request.spec.name, None)
            is_here = (
                slot is not None and slot.spec == request.spec and slot.data is data and slot.step == request.first_step
            )
            if slot is None or not is_here:
                slot = self._pack.join(request.spec, data, self._states.whole(request.snapshot))
        except Exception as error:  # noqa: BLE001  # the caller handles it
            request.answer.set_exception(error)
            return False
        request.assigned = slot
        return True

    def _round(self, active: list[AdvanceRequest]) -> list[AdvanceRequest]:
        """Train every trial by one step, answer those that have reached their step, and return the others."""
        try:
            training = [request for request in active if not request.reached]
            errors = self._pack.step([request.slot for request in training]) if training else {}
            for request in training:
                if error := errors.get(request.spec.name):
                    request.answer.set_exception(error)
            self._report(scored_now([request for request in active if not request.answer.done()]))
        except Exception as error:  # noqa: BLE001  # every waiting caller gets an answer
            _refuse(active, error)
        return [request for request in active if not request.answer.done()]

    def _report(self, requests: list[AdvanceRequest]) -> None:
        if not requests:
            return
        trained_s = [request.slot.device_s for request in requests]
        scores = self._pack.evaluate([request.slot for request in requests], "validation")
        for request, before_s in zip(requests, trained_s, strict=True):
            metrics, slot = scores[request.spec.name], request.slot
            if isinstance(metrics, LoraxsError):
                request.answer.set_exception(metrics)
                continue
            report = slot.report(metrics, slot.device_s - before_s)
            self._keep_idle(slot)
            answer = replace(report, peers=_peers(request, requests, scores))
            request.answer.set_result((answer, self._states.kept(request.spec, slot.snapshot())))
        self._expected += len(requests)
        with self._changed:
            for waiting in self._arrived:
                waiting.may_start = True

    def _keep_idle(self, slot: Slot) -> None:
        self._idle[slot.name] = slot
        while len(self._idle) > self._num_slots:
            self._idle.pop(next(iter(self._idle)))

    def _advance_unpacked(
        self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Task | None
    ) -> tuple[TrialReport, bytes]:
        try:
            return super().advance(spec, until, snapshot, task)
        finally:
            self.release(spec)

    # ---- the callers' side -------------------------------------------------------------------------------------------
    def _may_train_unpacked(self, task: Task | None) -> bool:
        """Whether trials of this task may adapt layers that cannot share passes."""
        return self._takes_turns and self._serves(task)

    def _trains_unpacked(self, spec: TrialSpec, task: Task | None) -> bool:
        """Whether a trial is advanced between rounds: its method, or a layer that it adapts, cannot share passes."""
        hyper = spec.hyperparameters
        method = method_of(hyper)
        if not method.can_pack(method.params(hyper)):
            return self._serves(task)
        return self._may_train_unpacked(task) and not self._pack.unpackable.isdisjoint(hyper.target_modules)

    def _park(self) -> None:
        """Take packed layers off the base, and the trial that trains unpacked."""
        self._pack.clear()
        super()._park()

    def _in_turn(self, job: Callable[[], ResultT]) -> ResultT:
        """Run a job in the host's own thread, between rounds."""
        own = _Job(job)
        with self._changed:
            self._refuse_when_closed()
            self._jobs.append(own)
            self._changed.notify_all()
        return own.answer.result()

    def _refuse_when_closed(self) -> None:
        if self._closing:
            raise RuntimeError("The host is closed.")


def _refuse(requests: Sequence[AdvanceRequest | _Job[Any]], error: Exception) -> None:
    """Answer those that wait with an error."""
    for request in requests:
        while not request.answer.done():
            with contextlib.suppress(MemoryError):  # there is none now, and those who wait would wait for ever
                request.answer.set_exception(error)


def _peers(
    request: AdvanceRequest, requests: Sequence[AdvanceRequest], scores: Mapping[str, Mapping[str, float] | LoraxsError]
) -> dict[str, tuple[int, float]]:
    """Return step and score of the other trials of the same study that were scored with this one."""
    metric = request.slot.data.task.search_metric
    return {
        other.spec.trial_id: (other.slot.step, metrics[metric])
        for other in requests
        if other is not request and other.spec.study == request.spec.study
        if not isinstance(metrics := scores[other.spec.name], LoraxsError) and metric in metrics
    }


def _sharing(loaded: LoadedBase, *, refuse: bool) -> Sharing:
    """Return which layers trials can share: none if rows of this base cannot share passes, unless `refuse` is set."""
    names = frozenset(module.name for module in loaded.modules)
    sharing = probe_sharing(loaded.exact, names)
    if not sharing.fault or refuse:
        return sharing
    log.warning("Trials take turns, since of this base %s.", sharing.fault)
    return Sharing("", names)


def _full_slots(loaded: LoadedBase, pack: Pack, batch_size: int, num_workers: int) -> int:
    """Return how many trials of the first task fill the device."""
    tokens = capacity.full_tokens(loaded.device, pack.max_tokens, pack.time_pass)
    return capacity.full_slots(tokens, num_workers, batch_size * float(loaded.data.lengths("train").mean()))


def _fitting_slots(loaded: LoadedBase, wanted: int, largest: LargestTrial, num_workers: int) -> int:
    each = capacity.slot_bytes(loaded.modules, largest, loaded.info().head_parameters, num_workers)
    return capacity.fitting_slots(wanted, each, loaded.device)
