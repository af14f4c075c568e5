"""The sampler's side of a study: its database, and params for the next trial in a time that does not grow with it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from loraxs_search.errors import HomeError
from loraxs_search.home import ENV_HOME
from loraxs_search.records import Direction, Scalar
from loraxs_search.search_space import Space

# TPE looks at every trial of a study for each proposal, some 20 microseconds each. Of a study with more than
# MAX_HISTORY trials it sees the best and the latest, this many of each, and those that run. What it takes for good are
# the 25 best ones at most, so these stay the same; the rest stand for all others.
MAX_HISTORY, KEPT = 1000, 250


def open_optuna_study(path: Path, name: str, direction: Direction) -> optuna.Study:
    """Open the study's SQLite storage, created at the first call.

    Its sampler is one that costs nothing: Optuna asks it whenever a trial is taken up. `propose` brings its own.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction=direction,
        sampler=optuna.samplers.RandomSampler(seed=0),
        load_if_exists=True,
    )


@contextlib.contextmanager
def database_faults(path: Path) -> Iterator[None]:
    """Turn what Optuna says of a disk that is full or cannot be written into `HomeError`.

    Raises:
        HomeError: the study's database cannot be read or written.
    """
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except (optuna.exceptions.StorageInternalError, OperationalError) as error:
        cause = error if isinstance(error, OperationalError) else error.__cause__
        raise HomeError(
            f"{path} must be writable, but the system says: {getattr(cause, 'orig', cause)}.",
            hint=f"free some space, or see that {ENV_HOME} is on a disk that can be written",
        ) from error


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
