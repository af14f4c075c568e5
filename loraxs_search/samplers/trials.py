"""The trials of a study as Optuna has them: a reader of the study's log, in memory, built anew at each start."""

from __future__ import annotations

import json
import math
from datetime import datetime

from optuna.distributions import json_to_distribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from loraxs_search.log.events import LoggedEvent, TrialContinued, TrialEnded, TrialReported, TrialStarted
from loraxs_search.records.search import CheckpointSelection, SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport
from loraxs_search.records.trial import TrialState as State


class StudyTrials:
    """Follows the events of a study.

    Attributes:
        plan: The study's.
        trials: All of them, by number, as the log has them so far.
    """

    def __init__(self, task: Task, plan: SearchPlan) -> None:
        self.plan, self._selection = plan, CheckpointSelection.of(task, plan)
        self.direction = StudyDirection.MAXIMIZE if task.search_direction == "maximize" else StudyDirection.MINIMIZE
        self.trials: list[FrozenTrial] = []
        self._reports: dict[str, list[TrialReport]] = {}  # of unfinished trials

    def apply(self, event: LoggedEvent) -> None:
        """Take the next event of the log."""
        metric = self._selection.metric
        match event:
            case TrialStarted(proposal=drawn):
                distributions = {name: json_to_distribution(json.dumps(it)) for name, it in drawn.distributions.items()}
                trial = create_trial(
                    state=TrialState.RUNNING,
                    params=dict(drawn.params),
                    distributions=distributions,
                    system_attrs=dict(drawn.attributes),
                )
                trial.number, trial.datetime_start = len(self.trials), datetime.fromtimestamp(event.at)
                self.trials.append(trial)
                self._reports[event.trial_id] = []
            case TrialReported(report=report):
                self._reports[report.trial_id].append(report)
                self.trials[int(report.trial_id)].intermediate_values[report.step] = report.metrics[metric]
            case TrialEnded():
                trial, reports = self.trials[int(event.trial_id)], self._reports[event.trial_id]
                if not event.is_cut:
                    del self._reports[event.trial_id]
                trial.datetime_complete = datetime.fromtimestamp(event.at)
                trial.user_attrs["reason"] = event.reason
                if event.state is State.COMPLETE:
                    value = self._selection.select(tuple(reports)).metrics[metric]
                    if math.isnan(value):  # nothing is better or worse: Optuna, too, takes it as failed
                        trial.user_attrs["state"], trial.state = event.state.value, TrialState.FAIL
                        return
                    trial.values = [value]
                elif event.state is State.PRUNED and reports:
                    score = reports[-1].metrics[metric]
                    trial.values = None if math.isnan(score) else [score]
                trial.state = TrialState[event.state.value]
            case TrialContinued():
                trial = self.trials[int(event.trial_id)]
                trial.values, trial.datetime_complete, trial.state = None, None, TrialState.RUNNING
