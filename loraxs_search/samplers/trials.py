"""The trials of a study as Optuna has them: a reader of the study's log, in memory, built anew at each start.

A study of several objectives takes no reports (`Trial.report` raises), so there they are the trial's attributes. A
pruned trial has no values there: `FrontHistory` shows the sampler which of these were good.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from loraxs_search.log.events import LoggedEvent, TrialEnded, TrialReported, TrialStarted
from loraxs_search.pareto import Point
from loraxs_search.records import CheckpointSelection, SearchPlan, Task, TrialReport
from loraxs_search.records import TrialState as State
from loraxs_search.samplers._base import DrawnSpace

_REPORT = "report."  # and the step: an attribute [score, stored bytes]
_UNKNOWN = TrialState.WAITING  # of a number that no event has: a driver of an older version asked for it, and died


class StudyTrials:
    """Follows the events of a study.

    Args:
        space: Returns the study's space; asked for where an older version has recorded trials without what they were
            drawn from.
    Attributes:
        plan: The study's.
        trials: All of them, by number, as the log has them so far; a number that it lacks has a trial that waits.
        attributes: The study's, which samplers keep their state in.
    """

    def __init__(self, task: Task, plan: SearchPlan, space: Callable[[], DrawnSpace]) -> None:
        self.plan, self._selection, self._space = plan, CheckpointSelection.of(task, plan), space
        score = StudyDirection.MAXIMIZE if task.search_direction == "maximize" else StudyDirection.MINIMIZE
        self.directions = (score, StudyDirection.MINIMIZE) if plan.objectives else (score,)
        self.trials: list[FrozenTrial] = []
        self.attributes: dict[str, Any] = {}
        self._missing: list[int] = []
        self._hidden: set[str] = set()
        self._reports: dict[str, list[TrialReport]] = {}  # of unfinished trials

    @property
    def next_number(self) -> int:
        """The number of the trial that starts next."""
        return self._missing[0] if self._missing else len(self.trials)

    def apply(self, event: LoggedEvent) -> None:
        """Take the next event of the log."""
        match event:
            case TrialStarted():
                self._start(event)
            case TrialReported(report=report) if report.trial_id not in self._hidden:
                self._report(self.trials[int(report.trial_id)], report)
            case TrialEnded():
                self._end(self.trials[int(event.trial_id)], event)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _start(self, event: TrialStarted) -> None:
        number = int(event.trial_id)
        if number in self._missing:
            self._missing.remove(number)
        while len(self.trials) <= number:
            if len(self.trials) < number:
                heapq.heappush(self._missing, len(self.trials))
            self.trials.append(_numbered(create_trial(state=_UNKNOWN), len(self.trials)))
        self.trials[number] = _numbered(self._drawn(event), number)
        self.trials[number].datetime_start = datetime.fromtimestamp(event.at)
        self._reports[event.trial_id] = []

    def _drawn(self, event: TrialStarted) -> FrozenTrial:
        """Return the trial with what it was drawn from; the sampler sees no params of a hidden trial."""
        if event.is_hidden:
            self._hidden.add(event.trial_id)
            return create_trial(state=TrialState.RUNNING)
        if (proposal := event.proposal) is None:
            space = self._space()
            fixed = FixedTrial(space.drawn_params(event.params))
            space.suggest(fixed)  # asks for the same values, and so says what they were drawn from
            return create_trial(state=TrialState.RUNNING, params=fixed.params, distributions=fixed.distributions)
        self.attributes |= proposal.study_attributes
        distributions = {
            name: json_to_distribution(json.dumps(distribution))
            for name, distribution in proposal.distributions.items()
        }
        return create_trial(
            state=TrialState.RUNNING,
            params=dict(proposal.params),
            distributions=distributions,
            system_attrs=dict(proposal.attributes),
        )

    def _report(self, trial: FrozenTrial, report: TrialReport) -> None:
        self._reports[report.trial_id].append(report)
        if len(self.directions) == 1:
            trial.intermediate_values[report.step] = report.metrics[self._selection.metric]
        else:
            trial.user_attrs[f"{_REPORT}{report.step}"] = self._values(report)

    def _end(self, trial: FrozenTrial, event: TrialEnded) -> None:
        reports = self._reports.pop(event.trial_id)
        trial.datetime_complete = datetime.fromtimestamp(event.at)
        trial.user_attrs["reason"] = event.reason
        if event.trial_id in self._hidden:  # samplers pass over what has failed
            trial.user_attrs["state"], trial.state = event.state.value, TrialState.FAIL
            return
        if event.state is State.COMPLETE:
            values = self._values(self._selection.select(tuple(reports)))
            if any(map(math.isnan, values)):  # nothing is better or worse: Optuna, too, takes it as failed
                trial.user_attrs["state"], trial.state = event.state.value, TrialState.FAIL
                return
            trial.values = values
        elif event.state is State.PRUNED and len(self.directions) == 1 and reports:
            score = reports[-1].metrics[self._selection.metric]
            trial.values = None if math.isnan(score) else [score]
        trial.state = TrialState[event.state.value]

    def _values(self, report: TrialReport) -> list[float]:
        return [report.metrics[self._selection.metric], float(report.size.stored_bytes)][: len(self.directions)]


def last_report(trial: FrozenTrial) -> tuple[int, Point] | None:
    """Return step, score and stored bytes of the last report in a study of two objectives; None before it."""
    steps = [int(name.removeprefix(_REPORT)) for name in trial.user_attrs if name.startswith(_REPORT)]
    if not steps:
        return None
    score, stored = trial.user_attrs[f"{_REPORT}{max(steps)}"]
    return max(steps), (score, stored)


def _numbered(trial: FrozenTrial, number: int) -> FrozenTrial:
    trial.number = number
    return trial
