"""What of a driver proposes trials, and hears what people ask for; nothing is trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.search import Searcher

from loraxs_search.records.codec import to_json
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import AdapterSize, TrialReport
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search.tune.advancer import REPORT, STEP
from loraxs_search.search.tune.loop import StudySearcher
from loraxs_search.search.tune.proposer import Proposer
from loraxs_search.search.tune.time_budget import TimeBudget
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.space import Space
from loraxs_search.steering import new_command, steered, take_commands
from loraxs_search.studies.folder import StudyFolder
from support.toys import HYPERPARAMETERS

SPACE = """
task: sst2
base_model: org/base
parameters:
  rank: {choice: [4, 8, 16]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
  sigma: {choice: [input, sqrt]}
  batch_size: 8
"""
PLAN = SearchPlan(trials=3, max_steps=40, report_every=10, scheduler="asha", seed=1)


def the_space() -> Space:
    return parse_space(SPACE, source="s.yaml", folder=Path("/"))


def write_space(folder: StudyFolder) -> None:
    """Write the space as a launch does."""
    (folder.path / "space.yaml").write_text(SPACE)
    (folder.path / "space.json").write_text(to_json(replace(the_space(), text="")))


@dataclass
class Driver:
    """What of a driver proposes: a searcher on a study folder."""

    folder: StudyFolder
    searcher: StudySearcher
    trials: StudyTrials

    def begin(self) -> str | None:
        """Have a trial begin; return its id, or what Tune is told where none does."""
        before = set(self.searcher.trial_ids)
        config = self.searcher.suggest(f"tune-{len(before)}-{len(self.searcher._log.records)}")
        if self.searcher.fatal_error is not None:
            raise self.searcher.fatal_error
        if not isinstance(config, dict):
            return config
        (tune_id,) = set(self.searcher.trial_ids) - before
        return self.searcher.trial_ids[tune_id]

    def end(self, trial_id: str, score: float = 0.5) -> None:
        (tune_id,) = (key for key, value in self.searcher.trial_ids.items() if value == trial_id)
        self.searcher.on_trial_complete(tune_id, {STEP: 40, REPORT: to_json(report(trial_id, 40, score))})

    def run(self) -> list[str]:
        """Have all trials begin and end, one after the other; return their ids."""
        names = []
        while (name := self.begin()) not in (None, Searcher.FINISHED):
            assert name is not None
            names.append(name)
            self.end(name, score=0.5 + len(names) / 100)
        return names


def report(trial_id: str, step: int, score: float) -> TrialReport:
    return TrialReport(trial_id, step, {"accuracy": score}, 0.5, 9.0, 10, AdapterSize(1, 1, 1), {"00009": (1, 0.1)})


def send(folder: StudyFolder, verb: str, *trials: str, params: Any = None, **arguments: Any) -> str:
    command = new_command(verb, trials, arguments, params)
    folder.inbox.put(command)
    return command.command_id


def drive(folder: StudyFolder, is_stopped: Callable[[], bool] = bool) -> Driver:
    """Return a driver that goes on with a study, as after a kill."""
    journal, info = folder.journal(), folder.info
    trials = StudyTrials(info.task, info.search)
    for event in journal.history():
        trials.apply(event)
    journal.follow = trials.apply
    folder.snapshots.recover(journal)
    steered_study = steered(folder, journal)

    def spec(trial_id: str, params: Any, seed_of: str = "") -> Any:
        return SimpleNamespace(hyperparameters=replace(HYPERPARAMETERS, seed=int(seed_of or trial_id)), params=params)

    actors: Any = SimpleNamespace(
        spec=spec,
        slot_counter=SimpleNamespace(max_concurrent=2, slots=SimpleNamespace(resources={"CPU": 1.0})),
    )

    def hear() -> None:
        if take_commands(steered_study):
            searcher.apply_commands()

    searcher = StudySearcher(
        Proposer(trials, the_space()),
        steered_study,
        actors,
        SCHEDULERS.get(info.search.scheduler)(info.search, "accuracy", "maximize"),
        TimeBudget(steered_study, actors, time.time()),
        is_stopped=is_stopped,
        take_commands=hear,
    )
    return Driver(folder, searcher, trials)
