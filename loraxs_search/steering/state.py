"""What the commands of a study have come to: the one state that its search follows."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SteeringState:
    """Rebuilt from the journal's commands and their answers, in their order; nothing else changes it.

    Args:
        stopping: Trials that are to end, with the reason; it stays here once they have.
        at_once: Those of them that end at their next step, without a report.
        paused: Trials that are not to train until they are continued.
        is_paused: Whether no new trials are proposed either.
        finishing: Why the study ends without new trials; None while it does not.
    """

    stopping: dict[str, str] = field(default_factory=dict)
    at_once: set[str] = field(default_factory=set)
    paused: set[str] = field(default_factory=set)
    is_paused: bool = False
    finishing: str | None = None
