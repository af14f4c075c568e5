"""What schedulers that halve share: rungs, and trials that are held against all others at their rung."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from loraxs_search.pareto import Point
from loraxs_search.plugins import SearchKey
from loraxs_search.schedulers._base import Scheduler, SchedulerConfig, ScoredTrial


class Rung(ABC):
    """The trials that reached a step, by their scores (larger is better) and what they store."""

    def __init__(self) -> None:
        self.announced: set[str] = set()  # trials whose score is known, and about which nothing has been decided

    @abstractmethod
    def __contains__(self, trial_id: str) -> bool: ...

    @abstractmethod
    def add(self, trial_id: str, point: Point) -> None:
        """Add a trial that is not there yet; its score may be NaN, and so may be what a peer stores."""

    @abstractmethod
    def judge(self, trial_id: str, point: Point, factor: int) -> str | None:
        """Add a trial, in place of what was announced of it; return why it is not among the best 1/factor, or None."""


class HalvingScheduler(Scheduler):
    """Stops a trial at a rung when it is not among the best 1/reduction_factor that reached the rung.

    Rungs are at `report_every` times each power of `reduction_factor`, below `max_steps`. A trial is held against all
    others at its rung, its peers among them whichever report comes first: of trials that report at the same time the
    first one would always continue otherwise. A subclass says in its kind of rung who is among the best.
    """

    parameters: ClassVar[Mapping[str, SearchKey]] = {
        "reduction_factor": SearchKey(
            Annotated[int, Field(ge=2)],
            2,
            about="`asha` and `mo-asha` keep this share of the trials at each comparison: the best half with 2, the"
            " best third with 3. Comparisons come after `report_every` times 1, 2, 4, 8, ... steps, or 1, 3, 9, ...",
        )
    }
    rung: ClassVar[type[Rung]]
    title: ClassVar[str]  # what reasons call it

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self._factor = int(config.parameters["reduction_factor"])
        self._sign = 1.0 if config.direction == "maximize" else -1.0  # of scores, so that larger is better
        self._rungs: list[tuple[int, Rung]] = []  # highest first
        step = config.report_every
        while step < config.max_steps:
            self._rungs.insert(0, (step, self.rung()))
            step *= self._factor

    def decide(self, trial: ScoredTrial) -> str | None:
        """Compare a trial with all that reached the highest of its rungs at which it has not been judged."""
        for peer, (step, score) in trial.peers.items():
            self._announce(peer, step, (self._sign * score, trial.peer_bytes.get(peer, math.nan)))
        if trial.step >= self.config.max_steps:
            return None
        for milestone, rung in self._rungs:
            if trial.step >= milestone and (trial.trial_id not in rung or trial.trial_id in rung.announced):
                return self._judge(trial, rung)
        return None

    def _announce(self, trial_id: str, step: int, point: Point) -> None:
        """Put a peer's score into its rung ahead of its own report; nothing is decided."""
        for milestone, rung in self._rungs:
            if step >= milestone and trial_id not in rung:
                rung.add(trial_id, point)
                rung.announced.add(trial_id)
                return

    def _judge(self, trial: ScoredTrial, rung: Rung) -> str | None:
        rung.announced.discard(trial.trial_id)
        why = rung.judge(trial.trial_id, (self._sign * trial.score, trial.stored_bytes), self._factor)
        return None if why is None else f"{self.title} stopped it at step {trial.step}: {trial.score:.4g} {why}"
