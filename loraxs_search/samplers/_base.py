"""The contract of a sampler, which proposes the params of the next trial, and the trials that it sees."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

from optuna.distributions import json_to_distribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from loraxs_search.log.events import LoggedEvent, TrialContinued, TrialEnded, TrialReported, TrialStarted
from loraxs_search.plugins import ParameterSpec, with_defaults
from loraxs_search.records.search import CheckpointSelection, SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport
from loraxs_search.records.trial import TrialState as State

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


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


class Sampler(ABC):
    """Proposes params by the trials so far; a subclass writes `optuna_sampler`, and `faults` if it has limits.

    Who calls: `Proposer` in the search's loop, from one thread, once before each trial starts. It asks for a new Optuna
    sampler each time, which sees the study as it is then: complete, stopped and running trials. The loop waits for the
    answer: a second is acceptable.

    What may be repeated: a proposal is recorded before a trial starts by it. A driver that is killed in between asks
    again, and a driver that resumes a study has nothing but the log. Hence the same plan, seed and history give the
    same proposal. The sampler reads no clock, and keeps nothing in itself or in files. What it must remember it writes
    to the trial's system attributes in Optuna: they are recorded with the proposal, as JSON, and shown at the next one.
    They come from the study's files, so nothing in them is run or unpickled unchecked.

    Conditions: `Space.suggest` asks only for the parameters that a trial has. The first trials are not the
    sampler's: each method has one, by its recipe, the rest drawn at random. Neither are those that a person adds, of
    which only what is left out is proposed. The sampler sees them all.

    Scores: a trial whose score is not a number is shown as failed, as Optuna has it.

    Limits: what a sampler cannot search is a fault, reported with those of the space before anything starts. It never
    falls back to another way of sampling without saying so: what it draws at random it says in `advice`.

    Raises: an exception ends the search with a message, and no trial is to blame.

    A subclass is registered under its `name`: in `SAMPLERS`, or by an entry point of the group
    `loraxs_search.samplers`. A space names it in `search.sampler` and gives its parameters beside that.
    `tests/contracts/test_samplers.py` runs on every entry.

    Args:
        plan: The search's. Its `params` hold the sampler's `parameters`.
        searched: What trials draw, in the space's order, and whether some trials lack it. The names are those that
            Optuna knows: each alternative of a parameter has its own.
    Attributes:
        params: A value for each of the sampler's `parameters`.
    """

    name: ClassVar[str]
    parameters: ClassVar[Mapping[str, ParameterSpec]] = {}

    def __init__(self, plan: SearchPlan, searched: Mapping[str, bool]) -> None:
        self.plan, self.searched = plan, searched
        self.params = with_defaults(self.parameters, plan.params)

    @abstractmethod
    def optuna_sampler(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
        """Return what draws one trial.

        Args:
            seed: Of this trial, 32 bits. A sampler that spreads its points over all trials takes the search's.
            distributions: Of everything that trials draw, by the names in `searched`.
        """

    def faults(self) -> Iterator[str]:
        """Yield why it cannot do this search, each as a rule and what to write instead."""
        yield from ()

    def advice(self) -> Iterator[str]:
        """Yield what a user should know before starting this search, such as what is drawn at random."""
        yield from ()
