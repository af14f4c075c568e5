"""The trials of a study as Optuna has them, read from its log: whoever reads it again proposes the same."""

from __future__ import annotations

import pytest
from support.searched_studies import proposal
from support.studies import study as new_study
from support.toy_ia3 import ToyIA3

from loraxs_search.log.events import LoggedEvent, TrialEnded, TrialReported, TrialStarted
from loraxs_search.methods import METHODS
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialState
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.search.tune.proposer import Proposer
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder

SPACE = """
task: sst2
base_model: org/base
parameters:
  rank: {choice: [4, 8]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
  sigma: {choice: [input, sqrt]}
  init_std: {uniform: [1.0e-5, 1.0e-3], when: {sigma: sqrt}}
  batch_size: 8
"""
PLAN = SearchPlan()


def report(trial_id: str, step: int, score: float, stored: int = 1) -> TrialReport:
    return TrialReport(trial_id, step, {"accuracy": score}, 0.5, 1.0, 10, AdapterSize(1, 1, stored))


def read(folder: StudyFolder, space: Space, plan: SearchPlan = PLAN) -> StudyTrials:
    """Read a study's log from its beginning, as a driver does that begins."""
    trials = StudyTrials(folder.info.task, plan)
    for event in folder.journal().history():
        trials.apply(event)
    return trials


class Search:
    """Proposes trials and has them end, each event in the log and then in what Optuna has."""

    def __init__(self, folder: StudyFolder, space: Space, plan: SearchPlan = PLAN) -> None:
        self.journal, self.trials = folder.journal(), read(folder, space, plan)
        self.sampler = Proposer(self.trials, space)

    def take(self, event: LoggedEvent | None) -> None:
        assert event is not None
        self.trials.apply(event)

    def propose(self, seed: int) -> tuple[str, dict[str, object]]:
        name = f"{len(self.trials.trials):05d}"
        params, proposal = self.sampler.propose(seed)
        self.take(self.journal.append(TrialStarted(trial_id=name, params=params, proposal=proposal)))
        return name, params

    def train(self, name: str, params: dict[str, object], state: TrialState, *steps: int) -> None:
        for step in steps:
            score = -abs(float(str(params["learning_rate"])) - 0.01) + step / 1000
            self.take(
                self.journal.append(
                    TrialReported(report=report(name, step, score, 100 * int(str(params.get("rank", 1)))))
                )
            )
        if state is not TrialState.RUNNING:
            self.take(self.journal.append(TrialEnded(trial_id=name, state=state, reason="ended")))

    def run(self, num_trials: int) -> None:
        for number in range(num_trials):
            state = TrialState.PRUNED if number % 3 else TrialState.COMPLETE
            name, params = self.propose(number)
            self.train(name, params, state if number < num_trials - 2 else TrialState.RUNNING, 8, 16)


@pytest.fixture
def space(tmp_path):
    return parse_space(SPACE, source="s.yaml", folder=tmp_path)


@pytest.fixture
def folder(store_uri):
    return new_study("s", store_uri)


def same(first: StudyTrials, second: StudyTrials) -> bool:
    return [vars(trial) for trial in first.trials] == [vars(trial) for trial in second.trials]


def test_whoever_reads_the_log_again_has_the_same_trials_and_proposes_the_same(folder, space):
    search = Search(folder, space)
    search.run(30)
    again = Search(folder, space)
    assert same(again.trials, search.trials)
    assert [again.sampler.propose(seed) for seed in range(4)] == [search.sampler.propose(seed) for seed in range(4)]


METHODS_SPACE = """
task: sst2
base_model: org/base
method: {choice: [lora-xs, toy-ia3]}
parameters:
  rank: {choice: [4, 8]}
  side: {choice: [input, output]}
  learning_rate:
    - {log_uniform: [1.0e-3, 1.0e-1], when: {method: lora-xs}}
    - {log_uniform: [1.0e-5, 1.0e-4], when: {side: input}}
    - 1.0e-3
"""


def test_of_several_methods_too(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS._entries, ToyIA3.name, ToyIA3)
    space = parse_space(METHODS_SPACE, source="s.yaml", folder=tmp_path)
    search = Search(folder, space)
    search.run(30)
    again = Search(folder, space)
    assert {record.params["method"] for record in again.journal.records.values()} == {"lora-xs", "toy-ia3"}
    for before, after in zip(search.trials.trials, again.trials.trials, strict=True):
        assert (before.params, before.distributions) == (after.params, after.distributions)
    assert [again.sampler.propose(seed) for seed in range(5)] == [search.sampler.propose(seed) for seed in range(5)]


# ---- what Optuna hears of a trial ------------------------------------------------------------------------------------
ENDS = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def ended(folder: StudyFolder, space: Space, plan: SearchPlan) -> StudyTrials:
    journal = folder.journal()
    for number, state in enumerate(ENDS):
        name = f"{number:05d}"
        params = {"rank": 4, "learning_rate": 0.01, "sigma": "input"}
        journal.append(TrialStarted(trial_id=name, params=params, proposal=proposal(space, params)))
        journal.append(TrialReported(report=report(name, 4, 0.5 + number / 10)))
        journal.append(TrialReported(report=report(name, 8, 0.6 + number / 10)))
        journal.append(TrialEnded(trial_id=name, state=state, reason=f"because {number}"))
    return read(folder, space, plan)


def test_the_ends_reach_optuna_with_value_and_reason(folder, space):
    trials = ended(folder, space, SearchPlan()).trials
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert [t.user_attrs["reason"] for t in trials] == ["because 0", "because 1", "because 2"]
    assert [t.value for t in trials] == [0.6, 0.7, None], "of a pruned trial Optuna takes the last report"
    assert [t.intermediate_values for t in trials] == [{4: 0.5, 8: 0.6}, {4: 0.6, 8: 0.7}, {4: 0.7, 8: 0.8}]


def test_of_a_study_that_keeps_the_best_step_that_one_counts(folder, space):
    journal = folder.journal()
    params = {"rank": 4, "learning_rate": 0.01, "sigma": "input"}
    journal.append(TrialStarted(trial_id="00000", params=params, proposal=proposal(space, params)))
    for step, score in ((4, 0.9), (8, 0.6)):
        journal.append(TrialReported(report=report("00000", step, score)))
    journal.append(TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason="so"))
    assert [trial.value for trial in read(folder, space, SearchPlan(checkpoint="best")).trials] == [0.9]
