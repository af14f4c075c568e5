"""Which trials the sampler sees of a long history, or of one with two objectives, and in which order."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from loraxs_search.pareto import Fronts
from loraxs_search.samplers.trials import last_report

INFORMATIVE = (TrialState.COMPLETE, TrialState.PRUNED)


class _EndedTrials:
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
        self._ended = _EndedTrials()

    def window(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the best, the latest and those that run, in the order of their numbers.

        Args:
            trials: The whole history, by number; at least what it was at the last call.
        """
        for trial in self._ended.new(trials):
            bisect.insort(self._ranked, (self._rank(trial), trial.number))
        window = {
            *latest(trials, self._limit),
            *(number for _, number in self._ranked[: self._limit]),
            *self._ended.running,
        }
        return [trials[number] for number in sorted(window)]

    def _rank(self, trial: FrozenTrial) -> tuple[bool, int, float]:
        pruned = trial.state is TrialState.PRUNED
        return pruned, -(trial.last_step or 0) if pruned else 0, self._sign * (trial.value or 0.0)


class FrontHistory:
    """Ranks the trials of a study by fronts of score and stored bytes; each is taken up once, when it has ended.

    Complete trials are before pruned ones, and of these, those that came farther are first. Optuna ranks complete ones
    by itself. Pruned ones have no values there, so that it takes them as equal, and the first of a list for the best:
    hence they come here in their order. While few trials are complete, these are what it learns from.

    Args:
        limit: How many of the best, and how many of the latest, stand for a history that is longer than `longest`.
    """

    def __init__(self, direction: StudyDirection, longest: int, limit: int) -> None:
        self._sign = 1.0 if direction is StudyDirection.MAXIMIZE else -1.0
        self._longest, self._limit = longest, limit
        self._complete = Fronts[int]()
        self._pruned: dict[int, Fronts[int]] = {}  # by step
        self._unranked: list[int] = []  # pruned before their first report, or with a score that is no number
        self._ended = _EndedTrials()

    def window(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials to be seen: of a long history the best, the latest and those that run.

        Args:
            trials: The whole history, by number; at least what it was at the last call.
        """
        for trial in self._ended.new(trials):
            self._take_up(trial)
        is_long = len(trials) > self._longest
        shown = dict.fromkeys(islice(self._ranked(), self._limit if is_long else None))
        if is_long:
            shown |= dict.fromkeys(sorted(latest(trials, self._limit)))
        return [trials[number] for number in (*shown, *self._ended.running)]

    def _ranked(self) -> Iterator[int]:
        """Yield all trials that have ended and say something, best first."""
        farthest_first = (self._pruned[step].ordered() for step in sorted(self._pruned, reverse=True))
        return chain(self._complete.ordered(), *farthest_first, self._unranked)

    def _take_up(self, trial: FrozenTrial) -> None:
        if trial.state is TrialState.COMPLETE:
            score, stored = trial.values
            self._complete.add(trial.number, (self._sign * score, stored))
            return
        last = last_report(trial)
        if last is None or math.isnan(last[1][0]):
            bisect.insort(self._unranked, trial.number)  # whichever ended first
            return
        step, (score, stored) = last
        self._pruned.setdefault(step, Fronts()).add(trial.number, (self._sign * score, stored))
