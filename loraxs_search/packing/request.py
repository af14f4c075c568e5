"""What a caller of a packed host waits for, who is let in next, and who is scored when.

Trials that are in step are scored in one evaluation, and their scheduler decides about all of them at once. A trial
that comes soon after the others have begun joins them, and they wait for it before they are scored; one that comes
later starts when the next of them is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from loraxs_search.packing.slot import Slot
from loraxs_search.records import Task, TrialReport, TrialSpec
from loraxs_search.trial import Snapshot

# The share of the steps between two reports that a trial may lag behind, and still be waited for.
_LAG = 4


@dataclass(eq=False)
class AdvanceRequest:
    """One caller's `advance`, from its arrival to its answer; `task` is None for the host's first one.

    Args:
        may_start: Whether it is let in whatever the others are doing: some have been scored since it came.
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
        """The step at which the caller's trial stands when it comes."""
        return self.snapshot.step if self.snapshot else 0

    @property
    def num_steps(self) -> int:
        """Steps from where it comes to where it is asked to be."""
        return min(self.until, self.spec.hyperparameters.max_steps) - self.first_step

    @property
    def steps_left(self) -> int:
        """Steps that it still has to take, once it has been taken up."""
        return self.first_step + self.num_steps - self.slot.step

    @property
    def reached(self) -> bool:
        """Whether the trial is where it was asked to be."""
        return self.steps_left <= 0


def admit(
    active: Sequence[AdvanceRequest], waiting: Sequence[AdvanceRequest], num_slots: int
) -> tuple[list[AdvanceRequest], list[AdvanceRequest]]:
    """Return who is let in and who waits on, both in order of arrival.

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
    """Return those that have reached their step, unless others are so near that they are waited for."""
    if any(0 < request.steps_left <= request.num_steps // _LAG for request in active):
        return []
    return [request for request in active if request.reached]
