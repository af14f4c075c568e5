"""No early stopping."""

from __future__ import annotations

from loraxs_search.schedulers._base import Scheduler, ScoredTrial


class NoScheduler(Scheduler):
    """Lets every trial train all its steps."""

    name = "none"

    def decide(self, trial: ScoredTrial) -> None:
        """Let the trial continue."""
