"""The view of a running search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from loraxs_search.records import NOT_STEERED, SearchEvent, SteeringStatus, Task, TrialRecord


@dataclass(frozen=True)
class SearchStarted:
    """Facts known once the base and the data are in place and before the first trial.

    Args:
        num_trials: Trials the search will end with.
        device: Name of the device of the first host.
        trials: Those that there are already, where a search goes on.
        why_slots: Why so many share a device; empty where that was asked for.
        keep: Which step of a trial becomes its adapter.
        notes: What of the space may not be what was meant.
        at: When, seconds since 1970.
        report_every: Steps between two reports of a trial.
        num_refits: Trainings from new seeds that follow, at most.
        slots: Trials at once on each node, by its address.
        time_left_s: What is left of the time budget for trials; None where there is none.
        steering: What people have asked of the search so far.
    """

    study: str
    task: Task
    num_trials: int
    max_steps: int
    device: str
    dtype: str
    num_slots: int
    trials: tuple[TrialRecord, ...] = ()
    why_slots: str = ""
    keep: Literal["last", "best"] = "last"
    notes: tuple[str, ...] = ()
    at: float = 0.0
    report_every: int = 1
    num_refits: int = 0
    slots: Mapping[str, int] = field(default_factory=dict)
    time_left_s: float | None = None
    steering: SteeringStatus = NOT_STEERED


class SearchView(Protocol):
    """Shows a running search; every call returns at once and raises nothing."""

    def phase(self, text: str) -> None:
        """Show in a few words what is being done now."""

    def started(self, facts: SearchStarted) -> None:
        """The search begins, or goes on."""

    def trial_changed(self, record: TrialRecord) -> None:
        """A trial was started, reported or ended."""

    def commanded(self, text: str, status: SteeringStatus | None = None) -> None:
        """Somebody has sent a command, which was answered so; or the search waits for one.

        Args:
            status: What commands have come to; None where nothing has changed.
        """

    def noted(self, event: SearchEvent) -> None:
        """Something else is known: how far a phase is, a warning, the score of a yardstick or of a candidate."""

    def finished(self) -> None:
        """No more calls follow."""


class SilentView:
    """A view that shows nothing; what a program calling `launch` gets by default."""

    def phase(self, text: str) -> None: ...

    def started(self, facts: SearchStarted) -> None: ...

    def trial_changed(self, record: TrialRecord) -> None: ...

    def commanded(self, text: str, status: SteeringStatus | None = None) -> None: ...

    def noted(self, event: SearchEvent) -> None: ...

    def finished(self) -> None: ...
