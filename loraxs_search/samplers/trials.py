"""The trials of a study as Optuna has them: a reader of the study's log, in memory, built anew at each start.

A study of several objectives takes no reports (`Trial.report` raises), so there they are the trial's attributes. A
pruned trial has no values there: `FrontHistory` shows the sampler which of these were good.
"""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from loraxs_search.log.events import LoggedEvent, TrialEnded, TrialReported, TrialStarted
from loraxs_search.pareto import Point
from loraxs_search.records import CheckpointSelection, SearchPlan, Task, TrialReport
from loraxs_search.records import TrialState as State

_REPORT = "report."  # and the step: an attribute [score, stored bytes]


class StudyTrials:
    """Follows the events of a study.

    Attributes:
        plan: The study's.
        trials: All of them, by number, as the log has them so far.
        attributes: The study's, which samplers keep their state in.
    """

    def __init__(self, task: Task, plan: SearchPlan) -> None:
        self.plan, self._selection = plan, CheckpointSelection.of(task, plan)
        score = StudyDirection.MAXIMIZE if task.search_direction == "maximize" else StudyDirection.MINIMIZE
        self.directions = (score, StudyDirection.MINIMIZE) if plan.objectives else (score,)
        self.trials: list[FrozenTrial] = []
        self.attributes: dict[str, Any] = {}
        self._hidden: set[str] = set()
        self._reports: dict[str, list[TrialReport]] = {}  # of unfinished trials

    @property
    def next_number(self) -> int:
        """The number of the trial that starts next."""
        return len(self.trials)

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
        trial = self._drawn(event)
        trial.number, trial.datetime_start = len(self.trials), datetime.fromtimestamp(event.at)
        self.trials.append(trial)
        self._reports[event.trial_id] = []

    def _drawn(self, event: TrialStarted) -> FrozenTrial:
        """Return the trial with what it was drawn from; without a proposal the sampler sees no params."""
        proposal = event.proposal
        if proposal is None:
            self._hidden.add(event.trial_id)
            return create_trial(state=TrialState.RUNNING)
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
