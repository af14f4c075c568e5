"""Which trials the sampler sees in a study of two objectives, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from loraxs_search.pareto import Fronts
from loraxs_search.search.ledger.optuna_values import last_report
from loraxs_search.search.tune.ended_trials import EndedTrials, latest


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
        self._unranked: list[int] = []  # pruned before their first report
        self._ended = EndedTrials()

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
        if last is None:
            self._unranked.append(trial.number)
            return
        step, (score, stored) = last
        self._pruned.setdefault(step, Fronts()).add(trial.number, (self._sign * score, stored))
