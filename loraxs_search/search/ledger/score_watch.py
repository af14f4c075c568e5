"""Warnings while a search runs, of what its scores show to be wrong with how the task is asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from loraxs_search.records import Task, TrialReport

log = logging.getLogger(__name__)


class ScoreWatch:
    """Warns once of each thing.

    Args:
        max_steps: Of each trial. One that has trained less than half of them proves nothing.
    """

    def __init__(self, task: Task, max_steps: int) -> None:
        from loraxs_search.tasks.kinds import kind_of

        self._kind, self._max_steps = kind_of(task), max_steps
        self._said: set[str] = set()

    def reported(self, report: TrialReport) -> None:
        """Look at the scores of a trial's report."""
        if 2 * report.step >= self._max_steps:
            self.scored(report.trial_id, report.metrics)

    def scored(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        """Look at an adapter's scores."""
        for name, sentence in self._kind.score_warnings(metrics):
            if name not in self._said:
                self._said.add(name)
                log.warning("trial %s: %s", trial_id, sentence)
