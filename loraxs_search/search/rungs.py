"""ASHA's rungs with their scores in order: Ray sorts all that reached one again at each report."""

from __future__ import annotations

import bisect
import math
from typing import Any

from ray.tune.schedulers.async_hyperband import _Bracket


class Rung(dict[str, float]):
    """Scores of the trials that reached a step, by trial id, and in order."""

    def __init__(self) -> None:
        super().__init__()
        self._ordered: list[float] = []

    def __setitem__(self, trial_id: str, score: float) -> None:
        assert trial_id not in self, "a trial reaches a rung once"
        super().__setitem__(trial_id, score)
        if not math.isnan(score):
            bisect.insort(self._ordered, score)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rung_of, (dict(self),)  # a dict is filled before it has attributes

    def percentile(self, percent: float) -> float | None:
        """Return the score below which that much of all are, between two of them in proportion; None without any."""
        if not self._ordered:
            return None
        place = percent / 100 * (len(self._ordered) - 1)
        low = int(place)
        below, above = self._ordered[low], self._ordered[min(low + 1, len(self._ordered) - 1)]
        share = place - low  # numpy's own formula, to the last bit
        return below + (above - below) * share if share < 0.5 else above - (above - below) * (1 - share)


def _rung_of(scores: dict[str, float]) -> Rung:
    rung = Rung()
    for trial_id, score in scores.items():
        rung[trial_id] = score
    return rung


class OrderedBracket(_Bracket):  # type: ignore[misc]  # ray is untyped
    """Ray's bracket, which decides the same in a time that does not grow with the trials."""

    def __init__(self, min_steps: int, max_steps: int, reduction_factor: float) -> None:
        super().__init__(min_steps, max_steps, reduction_factor, 0)
        rungs: list[tuple[float, Any]] = self._rungs  # type: ignore[has-type]
        self._rungs = [(step, Rung()) for step, _ in rungs]

    def cutoff(self, recorded: Any) -> float | None:
        return recorded.percentile((1 - 1 / self.rf) * 100)  # type: ignore[no-any-return]
