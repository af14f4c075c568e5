"""Params for the next trial, in a time that does not grow with the study."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from loraxs_search.records import Scalar
from loraxs_search.search_space import Space

# TPE looks at every trial of a study for each proposal, some 20 microseconds each. Of a study with more than
# MAX_HISTORY trials it sees the best and the latest, this many of each, and those that run. What it takes for good are
# the 25 best ones at most, so these stay the same; the rest stand for all others.
MAX_HISTORY, KEPT = 1000, 250


def propose(
    study: optuna.Study, space: Space, seed: int, orphan: FrozenTrial | None = None
) -> tuple[Trial, dict[str, Scalar]]:
    """Ask for a trial and draw its params; they depend on the seed and the study's history only.

    Args:
        orphan: A trial that was asked for by a driver that died before it was recorded: finish asking.
    """
    before = study.sampler
    study.sampler = _sampler(study, space, seed)
    try:
        trial = study.ask() if orphan is None else live_trial(study, orphan)
        return trial, space.suggest(trial)
    finally:
        study.sampler = before


def live_trial(study: optuna.Study, frozen: FrozenTrial) -> Trial:
    """Return the handle of a trial that an earlier process may have asked for.

    `optuna.trial.Trial` is public and so is its constructor; the storage id it takes has no public accessor.
    """
    return Trial(study, frozen._trial_id)


def window(history: Sequence[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Return the trials that stand for a long history, in its order: the best, the latest, and those that run.

    The best are ranked as TPE does: complete ones by value, then pruned ones by how far they came.
    """
    ended = [t for t in history if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0

    def rank(trial: FrozenTrial) -> tuple[bool, int, float]:
        pruned = trial.state is TrialState.PRUNED
        return pruned, -(trial.last_step or 0) if pruned else 0, sign * (trial.value or 0.0)

    kept = {t.number for t in (*sorted(ended, key=rank)[:KEPT], *ended[-KEPT:])}
    return [t for t in history if t.number in kept or t.state is TrialState.RUNNING]


# ---- inside ----------------------------------------------------------------------------------------------------------
def _sampler(study: optuna.Study, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        # `group` is what conditional spaces need; Optuna has called it experimental since 2.8, the other since 2.4.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
        history = study.get_trials(deepcopy=False)
        if len(history) <= MAX_HISTORY:
            return sampler
        small = optuna.create_study(direction=study.direction, sampler=sampler)
        small.add_trials(window(history, study.direction))
        drawn = small.ask()
        space.suggest(drawn)
        return optuna.samplers.PartialFixedSampler(drawn.params, optuna.samplers.RandomSampler(seed=seed))
