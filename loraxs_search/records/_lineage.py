"""Where a trial comes from that the sampler did not propose."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lineage:
    """The trial that another one was cloned from.

    Args:
        study: The study of both.
        step: The clone began with its state after this step; 0 where it has its params alone.
    """

    study: str
    trial_id: str
    step: int = 0

    @property
    def is_warm(self) -> bool:
        """Whether the clone began with a state."""
        return self.step > 0

    def __str__(self) -> str:
        return f"{self.study}/{self.trial_id}" + (f"@{self.step}" if self.is_warm else "")


@dataclass(frozen=True)
class Origin:
    """Where a new trial comes from; by default the sampler proposes it.

    Args:
        command: Id of the command that asked for it.
        lineage: The trial that it was cloned from.
        is_hidden: Whether the sampler learns nothing from it: its params do not explain its scores, or lie outside of
            the space.
    """

    command: str = ""
    lineage: Lineage | None = None
    is_hidden: bool = False
