"""PED-ANOVA of a study's own memory: also where parameters are conditional, or have a range for each condition."""

from __future__ import annotations

import json

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from support.studies import study

from loraxs_search.log.events import TrialEnded, TrialReported, TrialStarted
from loraxs_search.records.trial import AdapterSize, Proposal, TrialReport, TrialState
from loraxs_search.reports.importances import MIN_TRIALS, Importances

METHODS = CategoricalDistribution(["lora-xs", "lora"])
SCALE, RATE = FloatDistribution(0, 1), FloatDistribution(1e-4, 1e-2, log=True)
OTHER_RATE = FloatDistribution(1e-5, 1e-3)


class Recorder:
    """Writes trials into the log of a study, as a driver does."""

    def __init__(self, folder):
        self.folder, self.journal, self.num_trials = folder, folder.journal(), 0

    def remember(self, score, params, state=TrialState.COMPLETE):
        of = {"method": METHODS, "scale": SCALE, "learning_rate": RATE}
        distributions = {name: json.loads(distribution_to_json(of.get(name, OTHER_RATE))) for name in params}
        name, self.num_trials = f"{self.num_trials:05d}", self.num_trials + 1
        self.journal.append(TrialStarted(trial_id=name, params=params, proposal=Proposal(params, distributions)))
        self.journal.append(
            TrialReported(report=TrialReport(name, 8, {"accuracy": score}, 0.5, 1.0, 10, AdapterSize(1, 1, 100)))
        )
        self.journal.append(TrialEnded(trial_id=name, state=state, reason="so"))


@pytest.fixture
def recorder(fresh_home):
    return Recorder(study("s"))


def test_what_decides_weighs_most(recorder):
    for number in range(20):
        recorder.remember(number / 20, {"scale": number / 20, "learning_rate": 1e-3 + (number * 7 % 20) * 1e-4})
    found = Importances.of(recorder.folder)
    assert list(found.values) == ["scale", "learning_rate"]
    assert found.values["scale"] > 0.6
    assert sum(found.values.values()) == pytest.approx(1.0)
    assert (found.num_trials, found.quantile, found.why) == (20, 0.25, "")


def test_a_parameter_of_some_trials_and_one_with_two_ranges_keep_their_names(recorder):
    for number in range(24):
        xs = number % 2 == 0
        rate = {"learning_rate": 1e-3} if xs else {"learning_rate[1]": 1e-4}
        params = {"method": "lora-xs" if xs else "lora", **rate, **({"scale": number / 24} if xs else {})}
        recorder.remember(number / 24 if xs else 0.1, params)
    found = Importances.of(recorder.folder)
    assert set(found.values) == {"method", "scale", "learning_rate"}
    assert next(iter(found.values)) == "scale", "among the trials that have one"


def test_only_complete_trials_count_and_too_few_are_none(recorder):
    for _ in range(MIN_TRIALS - 1):
        recorder.remember(0.5, {"scale": 0.5})
    recorder.remember(0.5, {"scale": 0.1}, TrialState.PRUNED)
    recorder.remember(0.5, {"scale": 0.1}, TrialState.FAIL)
    found = Importances.of(recorder.folder)
    assert (found.values, found.num_trials, found.why) == ({}, 9, "they need 10 complete trials")
