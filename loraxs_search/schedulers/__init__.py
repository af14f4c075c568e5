"""Schedulers: which trials stop early. Pure decisions, without Ray; `search/tune/loop.py` hands them to Ray Tune.

_base.py has the contract.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from typing import ClassVar

from loraxs_search.plugins import EntryPoints, ParameterSpec
from loraxs_search.records.codec import Direction, sign_of
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialReport
from loraxs_search.schedulers._base import Scheduler


class _Rung:
    """The scores of the trials that reached a step, larger is better; one may be NaN."""

    def __init__(self) -> None:
        self.announced: set[str] = set()  # trials whose score is known, and about which nothing has been decided
        self.scores: dict[str, float] = {}
        self._ordered: list[float] = []  # without NaN

    def add(self, trial_id: str, score: float) -> None:
        """Add a trial that is not there yet."""
        assert trial_id not in self.scores, "a trial reaches a rung once"
        self.scores[trial_id] = score
        if not math.isnan(score):
            bisect.insort(self._ordered, score)

    def discard(self, trial_id: str) -> None:
        """Remove what was announced of a trial."""
        self.announced.discard(trial_id)
        score = self.scores.pop(trial_id, math.nan)
        if not math.isnan(score):
            del self._ordered[bisect.bisect_left(self._ordered, score)]

    def percentile(self, percent: float) -> float:
        """Return the score below which that much of all are, between two of them in proportion; NaN without any."""
        if not self._ordered:
            return math.nan
        place = percent / 100 * (len(self._ordered) - 1)
        low = int(place)
        below, above = self._ordered[low], self._ordered[min(low + 1, len(self._ordered) - 1)]
        share = place - low  # numpy's own formula, to the last bit
        return below + (above - below) * share if share < 0.5 else above - (above - below) * (1 - share)


class _ASHA(Scheduler):
    """Stops a trial whose score is not among the best at its step.

    Rungs are at `report_every` times each power of `reduction_factor`, below `max_steps`. The best are
    1/reduction_factor of those that reached the rung. A trial is held against all others at its rung, its peers among
    them whichever report comes first: of trials that report at the same time the first one would always continue
    otherwise. The first trial at a rung continues, and so does one whose score is NaN.

    Source: arXiv 1810.05934; decides as Ray's `AsyncHyperBandScheduler` with one bracket does where no trial has peers,
    in a time that does not grow with the trials.
    """

    name = "asha"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = {
        "reduction_factor": ParameterSpec(
            "int",
            low=2,
            default=2,
            about="`asha` keeps this share of the trials at each comparison: the best half with 2, the best third with"
            " 3. Comparisons come after `report_every` times 1, 2, 4, 8, ... steps, or 1, 3, 9, ...",
        )
    }

    def __init__(self, plan: SearchPlan, metric: str, direction: Direction) -> None:
        super().__init__(plan, metric, direction)
        self._factor, self._sign = int(self.params["reduction_factor"]), sign_of(direction)
        self._rungs: list[tuple[int, _Rung]] = []  # highest first
        step = plan.report_every
        while step < plan.max_steps:
            self._rungs.insert(0, (step, _Rung()))
            step *= self._factor

    def decide(self, report: TrialReport, score: float) -> str | None:
        """Compare a trial with all that reached the highest of its rungs at which it has not been judged."""
        for peer, (step, of_peer) in report.peers.items():  # ahead of its own report; nothing is decided about it
            for milestone, rung in self._rungs:
                if step >= milestone and peer not in rung.scores:
                    rung.add(peer, self._sign * of_peer)
                    rung.announced.add(peer)
                    break
        if report.step >= self.plan.max_steps:
            return None
        for milestone, rung in self._rungs:
            if report.step >= milestone and (report.trial_id not in rung.scores or report.trial_id in rung.announced):
                rung.discard(report.trial_id)
                cutoff = rung.percentile((1 - 1 / self._factor) * 100)
                rung.add(report.trial_id, self._sign * score)
                if not self._sign * score < cutoff:  # also where either is NaN
                    return None
                return (
                    f"ASHA stopped it at step {report.step}: {score:.4g} is not among the best 1/{self._factor}"
                    " that reached this step"
                )
        return None


class _NoScheduler(Scheduler):
    """Lets every trial train all its steps."""

    name = "none"

    def decide(self, report: TrialReport, score: float) -> None:
        """Let the trial continue."""


SCHEDULERS: EntryPoints[type[Scheduler]] = EntryPoints(
    "search.scheduler", "loraxs_search.schedulers", _ASHA, _NoScheduler
)
