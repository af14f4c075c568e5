"""Which trials the sampler sees of a long history."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import islice

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

INFORMATIVE = (TrialState.COMPLETE, TrialState.PRUNED)


class History:
    """Knows which trials stand for a history of any length; each is ranked once, when it has ended.

    The best are ranked as TPE does: complete ones by value, then pruned ones by how far they came.

    Args:
        limit: How many of the best, and how many of the latest, stand for a longer history.
    """

    def __init__(self, direction: StudyDirection, limit: int) -> None:
        self._limit = limit
        self._sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
        self._ranked: list[tuple[tuple[bool, int, float], int]] = []
        self._running: list[int] = []  # those that had not ended at the last call
        self._num_seen = 0

    def window(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the best, the latest and those that run, in the order of their numbers.

        Args:
            trials: The whole history, by number; at least what it was at the last call.
        """
        fresh = [*self._running, *range(self._num_seen, len(trials))]
        self._num_seen = len(trials)
        self._running = [number for number in fresh if not trials[number].state.is_finished()]
        for number in fresh:
            if trials[number].state in INFORMATIVE:
                bisect.insort(self._ranked, (self._rank(trials[number]), number))
        latest = islice((trial.number for trial in reversed(trials) if trial.state in INFORMATIVE), self._limit)
        best = (number for _, number in self._ranked[: self._limit])
        return [trials[number] for number in sorted({*latest, *best, *self._running})]

    def _rank(self, trial: FrozenTrial) -> tuple[bool, int, float]:
        pruned = trial.state is TrialState.PRUNED
        return pruned, -(trial.last_step or 0) if pruned else 0, self._sign * (trial.value or 0.0)
