"""PED-ANOVA of a study's own memory: also where parameters are conditional, or have a range for each condition."""

from __future__ import annotations

import json

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from support.searched_studies import Tried, searched

from loraxs_search.records.trial import Proposal, TrialState
from loraxs_search.reports.importances import MIN_TRIALS, Importances

METHODS = CategoricalDistribution(["lora-xs", "lora"])
SCALE, RATE = FloatDistribution(0, 1), FloatDistribution(1e-4, 1e-2, log=True)
OTHER_RATE = FloatDistribution(1e-5, 1e-3)


def tried(score, params, state=TrialState.COMPLETE):
    """A trial whose params were drawn from these distributions."""
    of = {"method": METHODS, "scale": SCALE, "learning_rate": RATE}
    distributions = {name: json.loads(distribution_to_json(of.get(name, OTHER_RATE))) for name in params}
    return Tried(params, score, state=state, proposal=Proposal(params, distributions))


def test_what_decides_weighs_most(fresh_home):
    draws = [(n / 20, {"scale": n / 20, "learning_rate": 1e-3 + (n * 7 % 20) * 1e-4}) for n in range(20)]
    found = Importances.of(searched("s", [tried(*draw) for draw in draws]))
    assert list(found.values) == ["scale", "learning_rate"]
    assert found.values["scale"] > 0.6
    assert sum(found.values.values()) == pytest.approx(1.0)
    assert (found.num_trials, found.quantile, found.why) == (20, 0.25, "")


def test_a_parameter_of_some_trials_and_one_with_two_ranges_keep_their_names(fresh_home):
    trials = []
    for number in range(0, 24, 2):
        params = {"method": "lora-xs", "learning_rate": 1e-3, "scale": number / 24}
        trials += [tried(number / 24, params), tried(0.1, {"method": "lora", "learning_rate[1]": 1e-4})]
    found = Importances.of(searched("s", trials))
    assert set(found.values) == {"method", "scale", "learning_rate"}
    assert next(iter(found.values)) == "scale", "among the trials that have one"


def test_only_complete_trials_count_and_too_few_are_none(fresh_home):
    few = [tried(0.5, {"scale": 0.5})] * (MIN_TRIALS - 1)
    found = Importances.of(searched("s", [*few, tried(0.5, {"scale": 0.1}, TrialState.PRUNED)]))
    assert (found.values, found.num_trials, found.why) == ({}, 9, "they need 10 complete trials")
