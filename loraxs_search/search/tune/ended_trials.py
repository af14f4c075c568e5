"""Which trials of a growing history have ended: each is seen once, when it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from optuna.trial import FrozenTrial, TrialState

INFORMATIVE = (TrialState.COMPLETE, TrialState.PRUNED)


class EndedTrials:
    """Follows a history from call to call. `running` are the numbers of those that had not ended at the last one."""

    def __init__(self) -> None:
        self.running: list[int] = []
        self._num_seen = 0

    def new(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return those that have ended since the last call and say something.

        Args:
            trials: The whole history, by number; at least what it was at the last call.
        """
        fresh = [*self.running, *range(self._num_seen, len(trials))]
        self._num_seen = len(trials)
        self.running = [number for number in fresh if not trials[number].state.is_finished()]
        return [trials[number] for number in fresh if trials[number].state in INFORMATIVE]


def latest(trials: Sequence[FrozenTrial], limit: int) -> Iterator[int]:
    """Yield the numbers of the latest ones that say something, last first."""
    return islice((trial.number for trial in reversed(trials) if trial.state in INFORMATIVE), limit)
