"""Asynchronous successive halving that knows which trials were scored together."""

from __future__ import annotations

import bisect
import math

from loraxs_search.pareto import Point
from loraxs_search.schedulers._rungs import HalvingScheduler, Rung


class _ScoreRung(Rung):
    """Holds trials against each other by their scores alone."""

    def __init__(self) -> None:
        super().__init__()
        self._scores: dict[str, float] = {}
        self._ordered: list[float] = []  # without NaN

    def __contains__(self, trial_id: str) -> bool:
        return trial_id in self._scores

    def add(self, trial_id: str, point: Point) -> None:
        assert trial_id not in self._scores, "a trial reaches a rung once"
        self._scores[trial_id] = point[0]
        if not math.isnan(point[0]):
            bisect.insort(self._ordered, point[0])

    def judge(self, trial_id: str, point: Point, factor: int) -> str | None:
        """Hold a score against the percentile of all others'."""
        self._discard(trial_id)
        cutoff = self._percentile((1 - 1 / factor) * 100)
        self.add(trial_id, point)
        if cutoff is None or not point[0] < cutoff:
            return None
        return f"is not among the best 1/{factor} that reached this step"

    def _discard(self, trial_id: str) -> None:
        score = self._scores.pop(trial_id, math.nan)
        if not math.isnan(score):
            del self._ordered[bisect.bisect_left(self._ordered, score)]

    def _percentile(self, percent: float) -> float | None:
        """Return the score below which that much of all are, between two of them in proportion; None without any."""
        if not self._ordered:
            return None
        place = percent / 100 * (len(self._ordered) - 1)
        low = int(place)
        below, above = self._ordered[low], self._ordered[min(low + 1, len(self._ordered) - 1)]
        share = place - low  # numpy's own formula, to the last bit
        return below + (above - below) * share if share < 0.5 else above - (above - below) * (1 - share)


class ASHA(HalvingScheduler):
    """Stops a trial whose score is not among the best at its step.

    The best are 1/reduction_factor of those at its rung.

    The first trial at a rung continues, and so does one whose score is NaN.

    Source: arXiv 1810.05934; decides as Ray's `AsyncHyperBandScheduler` with one bracket does where no trial has peers,
    in a time that does not grow with the trials.
    """

    name = "asha"
    title = "ASHA"
    rung = _ScoreRung
