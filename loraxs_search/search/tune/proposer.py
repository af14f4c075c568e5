"""Asks the sampler for the next trial's params."""

from __future__ import annotations

import json
import warnings
from collections.abc import Container, Mapping, Sequence

import optuna
from optuna.distributions import distribution_to_json
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from loraxs_search.errors import LoraxsError
from loraxs_search.records.codec import Scalar
from loraxs_search.records.trial import Proposal
from loraxs_search.samplers import SAMPLERS
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.search_space.space import Space

# Samplers write a trial's params into these attributes while some of them are still to be drawn; an event has them all.
_RELATIVE_PARAMS = "relative_params"


class Proposer:
    """Draws params that depend on a seed and the study's history only. What it draws changes nothing.

    Each method has one of the first trials, by its recipe as far as the space has it, the rest drawn at random.

    Args:
        trials: The history; the study's plan, which they hold, names the sampler.
    Raises:
        UsageError: there is no such sampler.
    """

    def __init__(self, trials: StudyTrials, space: Space) -> None:
        self._trials, self._space = trials, space
        self._sampler = SAMPLERS.get(trials.plan.sampler)(trials.plan, space.searched())
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def propose(self, seed: int, *, index: int | None = None) -> tuple[dict[str, Scalar], Proposal]:
        """Return the params of the next trial, and how the sampler came to them.

        Args:
            seed: Any whole number; the 32 bits that samplers take of it differ between the seeds of all plans.
            index: Place among the search's own proposals, where people have added trials; by default its number.
        Raises:
            LoraxsError: the sampler failed.
        """
        turn, first = len(self._trials.trials) if index is None else index, self._space.first_params()
        if turn < len(first):  # by chance, one of several methods would often be tried late
            return self._draw(_fixed(first[turn], seed % 2**32))
        return self._sample(seed % 2**32)

    def add(self, given: Mapping[str, Scalar], seed: int) -> tuple[dict[str, Scalar], Proposal]:
        """Return the params of a trial that a person asked for; the sampler learns from it.

        Params that are not given are those that it would have if the sampler proposed it; what that lacks, since other
        values of the given ones would decide whether a trial has it, is drawn at random.

        Args:
            given: Values of the space, by name, with those that decide whether a trial has them.
        Raises:
            LoraxsError: the sampler failed.
        """
        _, proposed = self._sample(seed % 2**32)
        fixed = dict(proposed.params)
        for name, value in given.items():
            parameter = self._space.parameters[name]
            fixed |= {parameter.drawn_name(index): value for index in range(len(parameter.alternatives))}
        return self._draw(_fixed(fixed, seed % 2**32))

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _sample(self, seed: int) -> tuple[dict[str, Scalar], Proposal]:
        try:
            return self._draw(self._sampler.optuna_sampler(seed, self._space.distributions()))
        except LoraxsError:
            raise
        except Exception as error:  # a sampler from elsewhere may raise anything
            raise LoraxsError(
                f"The sampler {self._sampler.name!r} failed on trial {len(self._trials.trials):05d}:"
                f" {type(error).__name__}: {error}.",
                hint="fix the sampler, then continue with `loraxs-search resume`",
            ) from error

    def _draw(self, sampler: BaseSampler) -> tuple[dict[str, Scalar], Proposal]:
        """Draw on a study that shows the history, and keeps the new trial and its attributes to itself."""
        storage = _ShownHistory(self._trials.trials)
        study = optuna.create_study(storage=storage, direction=self._trials.direction, sampler=sampler)
        study_id = storage.get_study_id_from_name(study.study_name)
        trial = study.ask()
        params = self._space.suggest(trial)
        own = storage.get_all_trials(study_id)[-1]
        return params, Proposal(
            params=own.params,
            distributions={name: json.loads(distribution_to_json(each)) for name, each in own.distributions.items()},
            attributes={key: value for key, value in own.system_attrs.items() if _RELATIVE_PARAMS not in key},
        )


def _fixed(params: Mapping[str, Scalar], seed: int) -> BaseSampler:
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):  # since 2.4
        return PartialFixedSampler(dict(params), RandomSampler(seed=seed))


class _ShownHistory(InMemoryStorage):
    """A storage that shows the trials it is given, uncopied, before its own: adding them would copy each.

    Its own have the numbers behind them: TPE ignores a trial of a history that has the same number as one of them.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._shown = trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a trial that this sampler proposed."""
        trial_id = super().create_new_trial(study_id, template_trial)
        self.get_trial(trial_id).number += len(self._shown)
        return trial_id

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials shown, then the storage's own."""
        shown = [trial for trial in self._shown if states is None or trial.state in states]
        return shown + super().get_all_trials(study_id, deepcopy, states)
