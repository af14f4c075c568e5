"""What a caller of a packed host waits for, and who is let in next."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from loraxs_search.packing.slot import Slot
from loraxs_search.records import Task, TrialReport, TrialSpec


@dataclass(eq=False)
class Wish:
    """One caller's `advance`, from its arrival to its answer; `task` is None for the host's first one."""

    spec: TrialSpec
    until: int
    snapshot: bytes | None
    task: Task | None = None
    answer: Future[tuple[TrialReport, bytes]] = field(default_factory=Future)
    slot: Slot | None = None

    @property
    def at_hand(self) -> Slot:
        """The slot, once the wish has been taken up."""
        assert self.slot is not None
        return self.slot

    @property
    def there(self) -> bool:
        """Whether the trial is where it was asked to be."""
        return self.at_hand.step >= min(self.until, self.spec.hyperparameters.max_steps)


def admit(active: Sequence[Wish], waiting: Sequence[Wish], num_slots: int) -> tuple[list[Wish], list[Wish]]:
    """Return who is let in and who waits on, both in order of arrival.

    A trial is in a pack once at most: a second caller (its first one may have died) waits for the first to be done.
    """
    inside = {wish.spec.name for wish in active}
    admitted: list[Wish] = []
    left: list[Wish] = []
    for wish in waiting:
        if len(inside) < num_slots and wish.spec.name not in inside:
            inside.add(wish.spec.name)
            admitted.append(wish)
        else:
            left.append(wish)
    return admitted, left
