"""PED-ANOVA of a study's own memory: also where parameters are conditional, or have a range for each condition."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from support.searched_studies import Tried, searched

from loraxs_search.reports.importances import MIN_TRIALS, importances
from loraxs_search.search.ledger.optuna_storage import open_optuna_study

METHODS = CategoricalDistribution(["lora-xs", "lora"])
SCALE, RATE, OTHER_RATE = (
    FloatDistribution(0, 1),
    FloatDistribution(1e-4, 1e-2, log=True),
    FloatDistribution(1e-5, 1e-3),
)


def remember(folder, number, score, params, state=optuna.trial.TrialState.COMPLETE):
    """Have the sampler remember a trial, as a driver writes it."""
    study = open_optuna_study(folder.optuna_path, folder.name, "maximize")
    distributions = {
        name: {"method": METHODS, "scale": SCALE, "learning_rate": RATE}.get(name, OTHER_RATE) for name in params
    }
    value = None if state is optuna.trial.TrialState.FAIL else score
    study.add_trial(optuna.trial.create_trial(state=state, value=value, params=params, distributions=distributions))


@pytest.fixture
def folder(fresh_home):
    return searched("s", [Tried({}, 0.5)])


def test_what_decides_weighs_most(folder):
    for number in range(20):
        remember(folder, number, number / 20, {"scale": number / 20, "learning_rate": 1e-3 + (number * 7 % 20) * 1e-4})
    found = importances(folder)
    assert list(found.values) == ["scale", "learning_rate"]
    assert found.values["scale"] > 0.6
    assert sum(found.values.values()) == pytest.approx(1.0)
    assert (found.num_trials, found.quantile, found.why) == (20, 0.25, "")


def test_a_parameter_of_some_trials_and_one_with_two_ranges_keep_their_names(folder):
    for number in range(24):
        xs = number % 2 == 0
        rate = {"learning_rate": 1e-3} if xs else {"learning_rate[1]": 1e-4}
        params = {"method": "lora-xs" if xs else "lora", **rate, **({"scale": number / 24} if xs else {})}
        remember(folder, number, number / 24 if xs else 0.1, params)
    found = importances(folder)
    assert set(found.values) == {"method", "scale", "learning_rate"}
    assert next(iter(found.values)) == "scale", "among the trials that have one"


def test_only_complete_trials_count_and_too_few_are_none(folder):
    for number in range(MIN_TRIALS - 1):
        remember(folder, number, 0.5, {"scale": 0.5})
    remember(folder, 20, 0.5, {"scale": 0.1}, optuna.trial.TrialState.PRUNED)
    remember(folder, 21, 0.5, {"scale": 0.1}, optuna.trial.TrialState.FAIL)
    before = folder.optuna_path.read_bytes()
    found = importances(folder)
    assert (found.values, found.num_trials, found.why) == ({}, 9, "they need 10 complete trials")
    assert folder.optuna_path.read_bytes() == before, "reading writes nothing"


def test_a_study_fetched_without_its_memory_says_so(folder):
    assert importances(folder).why == "the sampler's memory is not on this machine"
    assert not folder.optuna_path.exists()


def test_a_memory_that_is_damaged_says_so(folder):
    folder.optuna_path.write_text("nonsense\n\n{}\n")
    assert importances(folder).why.startswith("the sampler's memory cannot be read: ")


def test_of_a_study_of_two_objectives_what_leads_to_the_front_counts(folder):
    study = open_optuna_study(folder.optuna_path, folder.name, "maximize", "minimize")
    for number in range(20):
        params = {"scale": number / 20, "learning_rate": 1e-3 + (number * 7 % 20) * 1e-4}
        distributions = {"scale": SCALE, "learning_rate": RATE}
        values = [number / 20, 100.0]
        study.add_trial(optuna.trial.create_trial(values=values, params=params, distributions=distributions))
    assert next(iter(importances(folder).values)) == "scale"
