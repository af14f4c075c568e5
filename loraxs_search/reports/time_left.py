"""How many steps a search still has to train, and how long that takes: estimates from what was measured so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loraxs_search.records.trial import TrialState


@dataclass(frozen=True)
class TrainedSteps:
    """How far a trial has come, and whether it continues."""

    steps: int
    state: TrialState


def expected_steps(trials: Sequence[TrainedSteps], num_trials: int, max_steps: int, report_every: int) -> float:
    """Return how many steps all trials of a search will have trained in the end.

    A trial is expected to continue from a report as often as those before it did; where none has got so far, always. So
    it is the most that there can be, until the first trials are stopped early.

    Args:
        num_trials: Those that are still to come included.
    """
    rungs = [*range(report_every, max_steps, report_every), max_steps]
    share = {step: _going_on(trials, step) for step in rungs[:-1]}
    done = sum(trial.steps for trial in trials)
    running = sum(_to_come(t.steps, rungs, share) for t in trials if t.state is TrialState.RUNNING)
    return done + running + max(0, num_trials - len(trials)) * _to_come(0, rungs, share)


def _going_on(trials: Iterable[TrainedSteps], step: int) -> float:
    """Return the share of the trials that were not stopped at a step, of those that got there and whose fate is known.

    Failed trials say nothing of it.
    """
    passed = sum(step < trial.steps for trial in trials)
    stopped = sum(trial.steps == step and trial.state is TrialState.PRUNED for trial in trials)
    return passed / (passed + stopped) if passed + stopped else 1.0


def _to_come(steps: int, rungs: Sequence[int], share: dict[int, float]) -> float:
    """Return the steps that a trial is expected to train beyond `steps`; it has not been stopped there."""
    expected, chance, last = 0.0, 1.0, steps
    for rung in rungs:
        if rung > steps:
            expected += chance * (rung - last)
            last, chance = rung, chance * share.get(rung, 1.0)
    return expected


class Pace:
    """Counts what is done over time, and says how much that is a second.

    Args:
        at: When it began, seconds since 1970.
        window_s: Older counts are forgotten; None keeps all.
    """

    def __init__(self, at: float, window_s: float | None = None) -> None:
        self._since, self._window_s = at, window_s
        self._counts: list[tuple[float, int]] = []
        self.last_at = at

    def add(self, at: float, amount: int) -> None:
        """Something was done."""
        self.last_at = max(self.last_at, at)
        self._counts.append((at, amount))
        if self._window_s is not None:
            self._counts = [count for count in self._counts if count[0] > self.last_at - self._window_s]

    def per_s(self, now: float | None = None) -> float | None:
        """Return how much was done a second up to `now`, by default up to the last count; None before the first."""
        end = self.last_at if now is None else max(now, self.last_at)
        start = self._since if self._window_s is None else max(self._since, end - self._window_s)
        amount = sum(amount for at, amount in self._counts if at > start)
        return amount / (end - start) if self._counts and end > start else None
