"""The trial host with many slots: whoever waits shares the next round."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from loraxs_search.errors import LoraxsError
from loraxs_search.packing import capacity
from loraxs_search.packing.lanes import Lanes, lanes_of
from loraxs_search.packing.pack import Pack
from loraxs_search.packing.resident import Resident
from loraxs_search.packing.slot import Slot
from loraxs_search.packing.wish import Wish, admit
from loraxs_search.records import (
    Answers,
    BaseModelRef,
    Basis,
    Confirmation,
    HostInfo,
    Precision,
    Task,
    TrialReport,
    TrialSpec,
)
from loraxs_search.trial import Snapshot

ResultT = TypeVar("ResultT")

LINGER_S = 0.05


class PackedHost:
    """Advances many trials at once on a base that is loaded once; the interface of `TrialHost`, for several threads.

    Trials may be of several tasks: `task` says which where it is not the one the host began with.

    `advance`, `release`, `confirm` and `info` may be called from any thread and block until they are done. One thread
    of the host's own does all computation: it forms a round of every trial that waits, so trials join and leave
    between rounds, and each caller gets its answer when its own trial is where it was asked to be. Up to `slots`
    trials are kept at hand between calls; a trial that is not is taken up from its snapshot.

    Args:
        slots: Trials in one round; callers beyond that wait for their turn, first come, first served. None means what
            suits the device; too many for its memory become fewer, with a warning.
        largest: (batch size, rank) of the largest trial to come, by which slots are counted.
        max_tokens: Padded tokens of one pass; None means what suits the device.
        linger_s: How long a round waits for trials that may join it: any when there is nothing to do, otherwise those
            that have just been answered. Trials that go on together are scored together.
    """

    def __init__(
        self,
        base: BaseModelRef,
        task: Task,
        *,
        slots: int | None,
        largest: tuple[int, int] = (16, 16),
        precision: Precision = "auto",
        device: str = "auto",
        max_tokens: int | None = None,
        linger_s: float = LINGER_S,
    ) -> None:
        # oneDNN forgets kernels beyond this number, and a pack uses more of them than a lone trial; read at first use.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
        self._resident = resident = Resident(base, task, precision=precision, device=device)
        budget = max_tokens or capacity.token_budget(resident.modules, resident.dtype, resident.device)
        lanes = Lanes(*lanes_of(resident.device))
        self._pack = Pack(resident.model, resident.factors, resident.modules, max_tokens=budget, lanes=lanes)
        self._num_slots, self._linger_s = _count_slots(resident, slots, largest, budget, lanes.count), linger_s
        self._kept: dict[str, Slot] = {}  # by the trial's name, oldest use first
        self._changed = threading.Condition()
        self._arrived: list[Wish] = []
        self._chores: list[Callable[[], None]] = []
        self._closing = False
        self._expected = 0
        self._worker = threading.Thread(target=self._work, name="packed-host", daemon=True)
        self._worker.start()

    def info(self, task: Task | None = None) -> HostInfo:
        """Describe base, data and device."""
        info = self._on_bare_base(lambda: self._resident.info(task))
        return replace(info, num_slots=self._num_slots, unpackable=self._pack.unpackable)

    def decompose(self, names: Sequence[str], rank: int, basis: Basis) -> None:
        """Get the factors of these layers ahead of their use; rounds wait."""
        self._on_bare_base(lambda: self._resident.decompose(names, rank, basis))

    def advance(
        self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Task | None = None
    ) -> tuple[TrialReport, bytes]:
        """Train `spec` up to step `until` and score it; return the report and the state to keep.

        Args:
            snapshot: The trial's last state, None when it has none; a host that has the trial at hand ignores it.

        Raises:
            TrialDivergedError: the trial has no finite loss or metric; others go on.
            TargetModulesError, RankError: the trial asks for what the base does not have.
        """
        wish = Wish(spec, until, snapshot, task)
        with self._changed:
            self._refuse_when_closed()
            self._arrived.append(wish)
            self._changed.notify_all()
        return wish.answer.result()

    def release(self, spec: TrialSpec) -> None:
        """Forget a trial that nobody advances at the moment."""
        self._have_done(lambda: self._kept.pop(spec.name, None))

    def confirm(self, spec: TrialSpec, snapshot: bytes, task: Task | None = None) -> Confirmation:
        """Return a trained adapter's files, as it will be loaded; rounds wait."""
        return self._on_bare_base(lambda: self._resident.confirm(spec, snapshot, task))

    def answer(self, spec: TrialSpec, snapshot: bytes, rows: range, task: Task | None = None) -> Answers:
        """Return a trained adapter's answers to these test rows, as it will be loaded; rounds wait."""
        return self._on_bare_base(lambda: self._resident.answer(spec, snapshot, rows, task))

    def factor_file(self, key: str) -> bytes:
        """Return a factor file, as `Confirmation.factors` names it."""
        return self._resident.factor_file(key)

    def close(self) -> None:
        """End the host's thread once all who wait are answered; the host takes no more calls."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._worker.join()

    # ---- the worker's side -------------------------------------------------------------------------------------------
    def _work(self) -> None:
        active: list[Wish] = []
        while True:
            with self._changed:
                self._await_work(active)
                if self._closing and not (active or self._arrived or self._chores):
                    break
                chores, self._chores = self._chores, []
                arrived, self._arrived = admit(active, self._arrived, self._num_slots)
            for chore in chores:
                chore()
            active += [wish for wish in arrived if self._take_up(wish)]
            active = self._round(active)
        self._pack.clear()

    def _await_work(self, active: list[Wish]) -> None:
        """Wait for something to do; then shortly for those who could share it: trials that were just answered."""
        wanted, self._expected = min(self._expected + len(active), self._num_slots), 0
        if not active:
            self._changed.wait_for(lambda: bool(self._arrived or self._chores or self._closing))
            wanted = self._num_slots
        if wanted > len(active):
            self._changed.wait_for(
                lambda: len(active) + len(self._arrived) >= wanted or self._chores or self._closing, self._linger_s
            )

    def _take_up(self, wish: Wish) -> bool:
        """Give a wish its slot; False when it could not be had and is answered with the reason."""
        try:
            snapshot = Snapshot.from_bytes(wish.snapshot) if wish.snapshot else None
            data = self._resident.prepared(wish.task)
            slot = self._kept.pop(wish.spec.name, None)
            step = snapshot.step if snapshot else 0
            if slot is None or slot.spec != wish.spec or slot.data is not data or slot.step != step:
                slot = self._pack.join(wish.spec, data, snapshot)
        except Exception as error:  # noqa: BLE001  # the caller's to handle, whatever it is
            wish.answer.set_exception(error)
            return False
        wish.slot = slot
        return True

    def _round(self, active: list[Wish]) -> list[Wish]:
        """Take a step of every trial that has one to take, answer those that are there, and return the others."""
        try:
            training = [wish for wish in active if not wish.there]
            errors = self._pack.step([wish.at_hand for wish in training]) if training else {}
            for wish in training:
                if error := errors.get(wish.spec.name):
                    wish.answer.set_exception(error)
            going = [wish for wish in active if not wish.answer.done()]
            self._report([wish for wish in going if wish.there])
        except Exception as error:  # noqa: BLE001  # nobody is left waiting for ever
            for wish in active:
                if not wish.answer.done():
                    wish.answer.set_exception(error)
        return [wish for wish in active if not wish.answer.done()]

    def _report(self, wishes: list[Wish]) -> None:
        if not wishes:
            return
        found = self._pack.evaluate([wish.at_hand for wish in wishes], "validation")
        for wish in wishes:
            metrics, slot = found[wish.spec.name], wish.at_hand
            if isinstance(metrics, LoraxsError):
                wish.answer.set_exception(metrics)
                continue
            report = slot.report(metrics)
            self._keep(slot)
            wish.answer.set_result((report, slot.snapshot().to_bytes()))
        self._expected += len(wishes)

    def _keep(self, slot: Slot) -> None:
        self._kept[slot.name] = slot
        while len(self._kept) > self._num_slots:
            self._kept.pop(next(iter(self._kept)))

    # ---- the callers' side -------------------------------------------------------------------------------------------
    def _on_bare_base(self, chore: Callable[[], ResultT]) -> ResultT:
        """Have the host's own thread do what needs the base as it was loaded, with no packed layer on it."""

        def run() -> ResultT:
            self._pack.clear()
            return chore()

        return self._have_done(run)

    def _have_done(self, chore: Callable[[], ResultT]) -> ResultT:
        answer: Future[ResultT] = Future()

        def run() -> None:
            try:
                answer.set_result(chore())
            except Exception as error:  # noqa: BLE001  # the caller's to handle, whatever it is
                answer.set_exception(error)

        with self._changed:
            self._refuse_when_closed()
            self._chores.append(run)
            self._changed.notify_all()
        return answer.result()

    def _refuse_when_closed(self) -> None:
        if self._closing:
            raise RuntimeError("The host is closed.")


def _count_slots(resident: Resident, wanted: int | None, largest: tuple[int, int], max_tokens: int, lanes: int) -> int:
    batch_size, rank = largest
    if wanted is None:
        mean_tokens = float(resident.data.lengths("train").mean())
        wanted = capacity.suitable_slots(max_tokens, lanes, batch_size * mean_tokens)
    each = capacity.slot_bytes(resident.modules, rank, resident.info().head_parameters, lanes)
    return capacity.fitting_slots(wanted, each, resident.device)
