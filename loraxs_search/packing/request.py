"""Requests to a packed host: which of them join the next round, and when they are scored.

Trials that are in step are scored in one evaluation, and their scheduler decides about all of them at once. A trial
that comes soon after the others have begun joins them, and they wait for it before they are scored; one that comes
later starts when the next of them is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from loraxs_search.packing.slot import Slot
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport, TrialSpec
from loraxs_search.trial.snapshot import Snapshot

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
