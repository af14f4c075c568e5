"""Which parameters decided a search, by Optuna's PED-ANOVA."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_search.errors import LoraxsError
from loraxs_search.studies.folder import StudyFolder

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
        why: Why there are none; empty if there are some.
    """

    study: str
    values: Mapping[str, float] = field(default_factory=dict)
    num_trials: int = 0
    quantile: float | None = None
    why: str = ""

    @classmethod
    def of(cls, folder: StudyFolder) -> Importances:
        """Return a study's importances, from its log; nothing is written."""
        import optuna

        from loraxs_search.samplers.trials import StudyTrials

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", UserWarning)  # of groups of trials that are small: `num_trials` says so
            try:
                recorded = StudyTrials(folder.info.task, folder.info.search)
                for event in folder.journal().history():
                    recorded.apply(event)
                study = optuna.create_study(direction=recorded.direction)
                for trial in recorded.trials:  # each parameter under its plain name
                    params = {name.partition("[")[0]: value for name, value in trial.params.items()}
                    drawn_from = {name.partition("[")[0]: value for name, value in trial.distributions.items()}
                    trial.params = {}  # Optuna compares the two
                    trial.distributions, trial.params = drawn_from, params
                    study.add_trial(trial)
            except (LoraxsError, ValueError) as error:  # the log is damaged
                reason = str(error).partition("\n")[0].rstrip(":")  # of all faults of a space, how many there are
                return cls(folder.name, why=f"what its params were drawn from is not known: {reason}")
            count = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
            if count < MIN_TRIALS:
                return cls(folder.name, num_trials=count, why=f"they need {MIN_TRIALS} complete trials")
            quantile = max(0.1, _BEST / count)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
            values = optuna.importance.get_param_importances(study, evaluator=evaluator)
        return cls(folder.name, values, count, quantile)
