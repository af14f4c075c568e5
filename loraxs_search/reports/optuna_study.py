"""A study's trials for Optuna's own tools: in memory, in a file that Optuna Dashboard opens, and as importances."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import LoraxsError, UsageError
from loraxs_search.home import disk_faults
from loraxs_search.studies.folder import StudyFolder

if TYPE_CHECKING:
    import optuna

    from loraxs_search.samplers.trials import StudyTrials


def optuna_study(folder: StudyFolder) -> optuna.Study:
    """Return a study's trials in Optuna's memory by their own numbers, each parameter under its plain name.

    Raises:
        StudyError: the log is damaged.
        ValueError: Optuna does not know what a trial's params were drawn from.
    """
    import optuna

    from loraxs_search.search_space.parameters import plain_name

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recorded = _recorded(folder)
    study = optuna.create_study(direction=recorded.direction)
    for trial in recorded.trials:
        params, drawn_from = trial.params, trial.distributions
        trial.params, trial.distributions = {}, {plain_name(name): value for name, value in drawn_from.items()}
        trial.params = {plain_name(name): value for name, value in params.items()}
        study.add_trial(trial)
    return study


def _recorded(folder: StudyFolder) -> StudyTrials:
    from loraxs_search.samplers.trials import StudyTrials

    trials = StudyTrials(folder.info.task, folder.info.search)
    for event in folder.journal().history():
        trials.apply(event)
    return trials


def export_optuna(study: str, path: Path) -> int:
    """Write a study's trials into a new file, an Optuna journal; return how many there are.

    Raises:
        UsageError: the file is there already.
        StudyError: there is no such study, or it is damaged.
        HomeError: the file cannot be written.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder = StudyFolder.open(study)
    if path.exists():
        raise UsageError(f"`--optuna` must name a new file, but {path} exists.", hint="remove it, or name another file")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    exported = _recorded(folder)
    with disk_faults(path):
        storage = JournalStorage(JournalFileBackend(str(path)))
        written = optuna.create_study(storage=storage, study_name=study, direction=exported.direction)
        written.add_trials(exported.trials)
    return len(exported.trials)


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


def importances(folder: StudyFolder) -> Importances:
    """Return a study's importances, from its log; nothing is written."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # of groups of trials that are small: `num_trials` says so
        try:
            study = optuna_study(folder)
        except (LoraxsError, ValueError) as error:  # the log is damaged
            reason = str(error).partition("\n")[0].rstrip(":")  # of all faults of a space, how many there are
            return Importances(folder.name, why=f"what its params were drawn from is not known: {reason}")
        count = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
        if count < MIN_TRIALS:
            return Importances(folder.name, num_trials=count, why=f"they need {MIN_TRIALS} complete trials")
        quantile = max(0.1, _BEST / count)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
        values = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return Importances(folder.name, values, count, quantile)
