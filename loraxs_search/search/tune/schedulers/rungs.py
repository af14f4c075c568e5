"""ASHA's rungs with their scores in order, and decisions that know of all trials that were scored together.

Ray sorts all that reached a rung again at each report, and decides about each report as it comes: of trials that report
at the same time the first one would always go on.
"""

from __future__ import annotations

import bisect
import math
from typing import Any

from ray.tune.schedulers.async_hyperband import _Bracket


class Rung(dict[str, float]):
    """Scores of the trials that reached a step, by trial id, and in order.

    Args:
        announced: Trials whose score is known, and about which nothing has been decided.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ordered: list[float] = []
        self.announced: set[str] = set()

    def __setitem__(self, trial_id: str, score: float) -> None:
        assert trial_id not in self, "a trial reaches a rung once"
        super().__setitem__(trial_id, score)
        if not math.isnan(score):
            bisect.insort(self._ordered, score)

    def __delitem__(self, trial_id: str) -> None:
        score = self[trial_id]
        super().__delitem__(trial_id)
        self.announced.discard(trial_id)
        if not math.isnan(score):
            del self._ordered[bisect.bisect_left(self._ordered, score)]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rung_of, (dict(self), self.announced)  # a dict is filled before it has attributes

    def percentile(self, percent: float) -> float | None:
        """Return the score below which that much of all are, between two of them in proportion; None without any."""
        if not self._ordered:
            return None
        place = percent / 100 * (len(self._ordered) - 1)
        low = int(place)
        below, above = self._ordered[low], self._ordered[min(low + 1, len(self._ordered) - 1)]
        share = place - low  # numpy's own formula, to the last bit
        return below + (above - below) * share if share < 0.5 else above - (above - below) * (1 - share)


def _rung_of(scores: dict[str, float], announced: set[str]) -> Rung:
    rung = Rung()
    for trial_id, score in scores.items():
        rung[trial_id] = score
    rung.announced = set(announced)
    return rung


class OrderedBracket(_Bracket):  # type: ignore[misc]  # ray is untyped
    """Ray's bracket, which decides the same in a time that does not grow with the trials.

    A trial is held against all others at its rung. Those that were scored together with it are announced first, so that
    each of them is held against the same scores, whichever report comes first.
    """

    def __init__(self, min_steps: int, max_steps: int, reduction_factor: float) -> None:
        super().__init__(min_steps, max_steps, reduction_factor, 0)
        rungs: list[tuple[float, Any]] = self._rungs  # type: ignore[has-type]
        self._rungs = [(step, Rung()) for step, _ in rungs]

    def announce(self, trial_id: str, step: int, score: float) -> None:
        """Put a score into its rung ahead of the trial's own report; nothing is decided."""
        for milestone, rung in self._rungs:
            if step >= milestone and trial_id not in rung:
                rung[trial_id] = score
                rung.announced.add(trial_id)
                return

    def on_result(self, trial: Any, cur_iter: int, cur_rew: float | None) -> str:
        """Decide as Ray's bracket does, about an announced score too."""
        for milestone, rung in self._rungs:
            if cur_iter >= milestone and trial.trial_id in rung.announced:
                del rung[trial.trial_id]
                break
            if cur_iter >= milestone and trial.trial_id not in rung:
                break
        return str(super().on_result(trial, cur_iter, cur_rew))

    def cutoff(self, recorded: Any) -> float | None:
        return recorded.percentile((1 - 1 / self.rf) * 100)  # type: ignore[no-any-return]
