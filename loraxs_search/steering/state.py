"""What the commands of a study have come to: the one state that its search follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_search.records import Scalar, SteeringStatus


@dataclass(frozen=True)
class AskedTrial:
    """A trial that a person asked for; it has been proposed once a trial's record names its command.

    Args:
        params: Those that are given; a clone's are whole.
        source: The trial that it is a clone of; empty where it is none.
        is_hidden: Whether the sampler learns nothing from it.
    """

    command_id: str
    params: Mapping[str, Scalar]
    source: str = ""
    is_hidden: bool = False


@dataclass
class SteeringState:
    """Rebuilt from the journal's commands and their answers, in their order; nothing else changes it.

    Args:
        stopping: Trials that are to end, with the reason; it stays here once they have.
        at_once: Those of them that end at their next step, without a report.
        paused: Trials that are not to train until they are continued.
        is_paused: Whether no new trials are proposed either.
        finishing: Why the study ends without new trials; None while it does not.
        asked: Trials that people asked for, by the id of the command, in order; they stay here once they have started.
        trials: How many the search is to propose itself, where that was extended.
        time_budget_s: The time budget of all drivers together, where that was extended.
        num_reopenings: Commands that asked for more after all trials had ended.
    """

    stopping: dict[str, str] = field(default_factory=dict)
    at_once: set[str] = field(default_factory=set)
    paused: set[str] = field(default_factory=set)
    is_paused: bool = False
    finishing: str | None = None
    asked: dict[str, AskedTrial] = field(default_factory=dict)
    trials: int | None = None
    time_budget_s: float | None = None
    num_reopenings: int = 0

    @property
    def status(self) -> SteeringStatus:
        """What of it those who watch are shown."""
        return SteeringStatus(tuple(sorted(self.paused)), self.is_paused, self.finishing or "")
