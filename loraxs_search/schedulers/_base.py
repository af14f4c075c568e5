"""The contract of a scheduler: which trials stop before their last step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from loraxs_search.plugins import ParameterSpec
from loraxs_search.records.literals import Direction, Scalar
from loraxs_search.records.trial import TrialReport


@dataclass(frozen=True)
class SchedulerConfig:
    """The settings that a scheduler decides by.

    Args:
        direction: Whether larger or smaller scores are better.
        max_steps: Of every trial.
        report_every: Steps between two reports of a trial; the last one comes at `max_steps`.
        parameters: A value for each of the scheduler's `parameters`.
    """

    direction: Direction
    max_steps: int
    report_every: int
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredTrial:
    """A trial that has just been scored.

    Args:
        step: Optimizer steps it has taken, at most `max_steps`.
        score: Validation value of what running trials are compared by; may be NaN.
        peers: Trials of the study that were scored in the same evaluation: id to (step, score). Their own reports come
            before or after this one; a peer that dies in between never reports.
    """

    trial_id: str
    step: int
    score: float
    peers: Mapping[str, tuple[int, float]] = field(default_factory=dict)


class Scheduler(ABC):
    """Decides about each report of a study whether its trial continues; a subclass writes `decide`.

    Who calls: the search's loop, from one thread, once for each report in the order in which reports come. It waits for
    the answer: `decide` takes less than a millisecond with thousands of trials behind it, reads no clock, draws no
    random number that is not seeded by the config, and touches no file.

    What a trial's scheduler can say: it stops, with the reason, or it continues. It cannot pause a trial or change it.
    Trials that fail or are lost are not reported, so a decision depends only on reports. A stopped trial
    reports no more.

    Restarts: a scheduler is not stored. A driver that continues with a study makes a new one and gives it by `replay`
    all reports from before, in the order in which they came; it must then stand where the old one stood. Hence the same
    config and the same reports give the same decisions.

    Raises: `decide` raises nothing for any score, NaN included. An exception ends the search, and no trial is to blame.

    A subclass is registered under its `name`: in `SCHEDULERS`, or by an entry point of the group
    `loraxs_search.schedulers`. A space names it in `search.scheduler` and gives its parameters beside that.
    `tests/contracts/test_schedulers.py` runs on every entry.

    Args:
        config: What to decide by.
    """

    name: ClassVar[str]
    parameters: ClassVar[Mapping[str, ParameterSpec]] = {}

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.stopped: dict[str, str] = {}  # trials that their last report stopped before all their steps: why
        # Whether a trial is never stopped; others are compared with it.
        self.spares: Callable[[str], bool] = lambda _: False
        self._steps: dict[str, int] = {}  # of each trial's latest report

    @abstractmethod
    def decide(self, trial: ScoredTrial) -> str | None:
        """Decide on one report; return why the trial stops, as shown to users, or None if it continues.

        Called once for each step of a trial. About a trial at its last step too, whose answer counts for nothing.
        """

    def report(self, report: TrialReport, metric: str) -> str | None:
        """Take in a report and return why its trial stops before all its steps, or None.

        A report that has been taken in before changes nothing and gets the same answer.
        """
        trial_id, step = report.trial_id, report.step
        if step > self._steps.get(trial_id, 0):
            self._steps[trial_id] = step
            reason = self.decide(ScoredTrial(trial_id, step, report.metrics[metric], report.peers))
            if reason is not None and step < self.config.max_steps and not self.spares(trial_id):
                self.stopped[trial_id] = reason
        return self.stopped.get(trial_id)

    def replay(self, reports: Iterable[TrialReport], metric: str) -> None:
        """Replay the reports from before a restart, in their order."""
        for report in reports:
            self.report(report, metric)
