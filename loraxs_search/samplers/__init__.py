"""What proposes params: Optuna's samplers under Optuna's names, with what a search of tiny adapters can set.

_base.py has the contract; trials.py has a study's trials as Optuna has them, read from its log.

`search/tune/proposer.py` asks the sampler for the next trial. Nothing here is kept on disk: `StudyTrials` reads the
log, and a proposal is an event in it before anything else has it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from loraxs_search.plugins import EntryPoints, ParameterSpec
from loraxs_search.samplers._base import Sampler

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

_STARTUP = ParameterSpec(
    "int",
    low=1,
    high=200,
    default=10,
    about="Trials drawn at random before `tpe` or `gp` learns; `gp` counts complete ones.",
)


class _TPE(Sampler):
    """Draws near good params, all parameters together. It learns from stopped trials too, and handles conditions."""

    name = "tpe"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = {"n_startup_trials": _STARTUP}

    def optuna_sampler(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import TPESampler

        # `group` is what conditional spaces need; since Optuna 2.8
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return TPESampler(
                n_startup_trials=int(self.params["n_startup_trials"]),
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=seed,
            )


class _RandomSearch(Sampler):
    """Draws each trial at random."""

    name = "random"

    def optuna_sampler(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


class _GP(Sampler):
    """Draws where a Gaussian process of the complete trials expects the most improvement. Use `scheduler: none`."""

    name = "gp"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = {"n_startup_trials": _STARTUP}

    def optuna_sampler(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
        from optuna.samplers import GPSampler

        together = {name: distributions[name] for name in self._together}

        class KnownSpaceGP(GPSampler):
            """Draws these together, in every trial. Optuna's own takes what all complete trials have had.

            By chance that may hold a conditional parameter, until a trial lacks it, and of trials that start together
            nothing is known.
            """

            def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
                return together

        return KnownSpaceGP(
            seed=seed, n_startup_trials=int(self.params["n_startup_trials"]), warn_independent_sampling=False
        )

    def faults(self) -> Iterator[str]:
        if self.searched and not self._together:
            yield "must be tpe or random where no parameter is searched in all trials, but got gp."

    def advice(self) -> Iterator[str]:
        needed = int(self.params["n_startup_trials"])
        if at_random := [name for name, is_conditional in self.searched.items() if is_conditional]:
            yield f"gp draws {', '.join(at_random)} (conditional) at random; it searches {', '.join(self._together)}"
        if self.plan.trials <= needed:
            yield f"gp learns from {needed} complete trials on, and the search has {self.plan.trials}"
        elif self.plan.scheduler != "none":
            yield (
                f"gp learns only from complete trials, from {needed} of them on, and the scheduler stops trials early:"
                " write scheduler: none, or sampler: tpe"
            )

    @property
    def _together(self) -> list[str]:
        return [name for name, is_conditional in self.searched.items() if not is_conditional]


SAMPLERS: EntryPoints[type[Sampler]] = EntryPoints("search.sampler", "loraxs_search.samplers", _TPE, _RandomSearch, _GP)
