"""Which parameters decide whether a trial is among a study's best: PED-ANOVA, by Optuna."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loraxs_search.errors import LoraxsError
from loraxs_search.reports.optuna_study import study_trials
from loraxs_search.studies import StudyFolder

if TYPE_CHECKING:
    import optuna

MIN_TRIALS = 10  # complete ones; with fewer, the best of them are too few to have a distribution
_BEST = 5  # Optuna advises at least so many trials above the quantile


@dataclass(frozen=True)
class Importances:
    """How far the best trials of a study lie apart from all, parameter by parameter.

    Args:
        values: Shares that sum to 1, largest first. A parameter with other ranges under other conditions, or without
            one, is weighed by each of these.
        num_trials: Complete trials that they are of.
        quantile: The share of trials that counts as the best.
        why: Why there are none; empty where there are.
    """

    study: str
    values: Mapping[str, float] = field(default_factory=dict)
    num_trials: int = 0
    quantile: float | None = None
    why: str = ""


def importances(folder: StudyFolder) -> Importances:
    """Return a study's importances, from its log; nothing is written."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # of groups of trials that are small: `num_trials` says so
        try:
            study = _complete_trials(folder)
        except (LoraxsError, ValueError) as error:  # of an older version, whose space this one cannot draw from
            return Importances(folder.name, why=f"what its params were drawn from is not known: {error}")
        count = len(study.trials)
        if count < MIN_TRIALS:
            return Importances(folder.name, num_trials=count, why=f"they need {MIN_TRIALS} complete trials")
        quantile = max(0.1, _BEST / count)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
        values = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return Importances(folder.name, values, count, quantile)


def _complete_trials(folder: StudyFolder) -> optuna.Study:
    """Return the complete trials in memory, each parameter under its own name."""
    import optuna
    from optuna.trial import TrialState

    from loraxs_search.search_space import plain_name

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stored = study_trials(folder)
    study = optuna.create_study(directions=stored.directions)
    for trial in stored.trials:
        if trial.state is TrialState.COMPLETE:
            params = {plain_name(name): value for name, value in trial.params.items()}
            distributions = {plain_name(name): value for name, value in trial.distributions.items()}
            study.add_trial(optuna.trial.create_trial(values=trial.values, params=params, distributions=distributions))
    return study
