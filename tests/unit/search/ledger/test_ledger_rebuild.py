"""The sampler's database made anew from the journal is the one that was lost."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from support.studies import study as new_study
from support.toy_ia3 import ToyIA3
from support.toys import HYPERPARAMETERS

from loraxs_search.methods import METHODS
from loraxs_search.records import AdapterSize, Direction, KeepRule, TrialRecord, TrialReport, TrialState
from loraxs_search.search.ledger.ledger import Ledger
from loraxs_search.search.ledger.optuna_storage import open_optuna_study
from loraxs_search.search.ledger.rebuild import rebuild
from loraxs_search.search.ledger.view import SilentView
from loraxs_search.search.tune.sampler import Sampler
from loraxs_search.search_space import Space, parse_space
from loraxs_search.studies import StudyFolder
from loraxs_search.tracking import Tracker

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


def searched(path: Path, space: Space, num_trials: int) -> tuple[optuna.Study, dict[str, TrialRecord]]:
    study = open_optuna_study(path, "s", "maximize")
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    records = {}
    for _ in range(num_trials):
        trial = study.ask()
        name = f"{trial.number:05d}"
        records[name] = TrialRecord(name, space.suggest(trial), TrialState.RUNNING)
    return study, records


def test_a_lost_memory_is_made_anew(tmp_path: Path) -> None:
    space = parse_space(SPACE, source="s.yaml", folder=tmp_path)
    lost, records = searched(tmp_path / "lost.jsonl", space, 12)
    study = open_optuna_study(tmp_path / "new.jsonl", "s", "maximize")
    for _ in range(2):  # doing it again changes nothing
        rebuild(study, space, records)
        for before, after in zip(lost.get_trials(), study.get_trials(), strict=True):
            assert (after.number, after.params, after.distributions) == (
                before.number,
                before.params,
                before.distributions,
            )
            assert after.state is optuna.trial.TrialState.RUNNING
    assert study.ask().number == 12


def test_what_it_has_is_left_and_a_number_that_was_never_begun_stays_free(tmp_path: Path) -> None:
    space = parse_space(SPACE, source="s.yaml", folder=tmp_path)
    study, records = searched(tmp_path / "o.jsonl", space, 2)
    params = records["00000"].params
    rebuild(study, space, records | {"00003": TrialRecord("00003", params, TrialState.RUNNING)})
    trials = study.get_trials()
    assert [bool(trial.params) for trial in trials] == [True, True, False, True]
    assert trials[3].params["rank"] == params["rank"]


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


def test_of_several_methods_a_memory_made_anew_goes_on_as_the_lost_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS._entries, ToyIA3.name, ToyIA3)
    space = parse_space(METHODS_SPACE, source="s.yaml", folder=tmp_path)
    study, records = open_optuna_study(tmp_path / "lost.jsonl", "s", "maximize"), {}
    for number in range(30):
        trial, params = Sampler(study, space).propose(number)
        records[f"{number:05d}"] = TrialRecord(f"{number:05d}", params, TrialState.RUNNING)
        study.tell(trial, params["learning_rate"])
    assert {record.params["method"] for record in records.values()} == {"lora-xs", "toy-ia3"}
    again = open_optuna_study(tmp_path / "new.jsonl", "s", "maximize")
    rebuild(again, space, records)
    for before, after in zip(study.get_trials(), again.get_trials(), strict=True):
        assert (before.params, before.distributions) == (after.params, after.distributions)
        again.tell(after.number, before.value)
    for seed in range(5):
        assert Sampler(study, space).propose(seed)[1] == Sampler(again, space).propose(seed)[1]


def ledger_on(folder: StudyFolder, study: optuna.Study, tracker: Tracker) -> Ledger:
    return Ledger(folder.journal(), study, tracker, SilentView(), KeepRule("accuracy", "maximize"))


@pytest.mark.parametrize("both", [("maximize",), ("maximize", "minimize")], ids=["score", "score and bytes"])
def test_from_a_memory_made_anew_the_same_is_proposed(
    both: tuple[Direction, ...], store_uri: str, tmp_path: Path
) -> None:
    """Reports, values and the ends of trials come back too, whichever way Optuna holds them."""
    space = parse_space(SPACE, source="s.yaml", folder=tmp_path)
    folder = new_study("s", store_uri)
    before = open_optuna_study(folder.optuna_path, "s", *both)
    with Tracker("s", folder.path, store_uri, "t") as tracker:
        ledger, sampler = ledger_on(folder, before, tracker), Sampler(before, space)
        for number in range(30):
            trial, params = sampler.propose(number)
            name, steps = f"{number:05d}", (8,) if number % 3 else (8, 16)
            ledger.started(name, params, HYPERPARAMETERS, trial)
            for step in steps:
                size = AdapterSize(1, 1, 100 * int(params["rank"]))
                score = -abs(float(params["learning_rate"]) - 0.01) + step / 1000
                ledger.reported(TrialReport(name, step, {"accuracy": score}, 0.5, 1.0, 10, size))
            if number < 28:
                ledger.ended(name, TrialState.PRUNED if number % 3 else TrialState.COMPLETE, "ended")
        expected = [Sampler(before, space).propose(seed)[1] for seed in range(30, 34)]
        folder.optuna_path.unlink()
        after = open_optuna_study(folder.optuna_path, "s", *both)
        rebuild(after, space, folder.journal().records)
        ledger_on(folder, after, tracker).reconcile(folder)
        assert [Sampler(after, space).propose(seed)[1] for seed in range(30, 34)] == expected
