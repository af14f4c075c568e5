"""Optuna's samplers under Optuna's names, with the options that a search of tiny adapters can use."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from loraxs_search.plugins import SearchKey
from loraxs_search.records import Scalar
from loraxs_search.samplers._base import Sampler, SearchedParameter

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

# Of fewer trials the weights of a generation are no numbers; and it must be among the latest that samplers see.
_MIN_POPSIZE, _MAX_POPSIZE = 4, 200
_STARTUP = SearchKey(
    Annotated[int, Field(ge=1, le=200)],
    10,
    about="Trials drawn at random before `tpe` or `gp` learns; `gp` counts complete ones.",
)


def _popsize(value: object) -> Scalar:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and _MIN_POPSIZE <= value <= _MAX_POPSIZE:
        return value
    raise ValueError(f"must be a whole number of {_MIN_POPSIZE} to {_MAX_POPSIZE}, or auto")


_Popsize = Annotated[
    Scalar,
    PlainValidator(_popsize),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": _MIN_POPSIZE, "maximum": _MAX_POPSIZE}, {"const": "auto"}]}
    ),
]


class TPE(Sampler):
    """Draws near good params, all parameters together. It learns from stopped trials too, and handles conditions."""

    name = "tpe"
    parameters: ClassVar[Mapping[str, SearchKey]] = {"n_startup_trials": _STARTUP}

    def optuna_sampler(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
        from optuna.samplers import TPESampler

        with experimental():  # `group` is what conditional spaces need; since Optuna 2.8
            return TPESampler(
                n_startup_trials=int(self.config.parameters["n_startup_trials"]),
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=seed,
            )


class RandomSearch(Sampler):
    """Draws each trial at random."""

    name = "random"

    def optuna_sampler(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


class GP(Sampler):
    """Draws where a Gaussian process of the complete trials expects the most improvement. Use `scheduler: none`."""

    name = "gp"
    parameters: ClassVar[Mapping[str, SearchKey]] = {"n_startup_trials": _STARTUP}

    def optuna_sampler(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
        from loraxs_search.samplers._optuna import KnownSpaceGP

        return KnownSpaceGP(
            _named(distributions, self._together),
            seed=seed,
            n_startup_trials=int(self.config.parameters["n_startup_trials"]),
            warn_independent_sampling=False,
        )

    def faults(self) -> Iterator[str]:
        if self.config.searched and not self._together:
            yield "must be tpe, random or qmc where no parameter is searched in all trials, but got gp."

    def advice(self) -> Iterator[str]:
        yield from _random_advice(self, self._together)
        yield from _complete_advice(self, int(self.config.parameters["n_startup_trials"]))

    @property
    def _together(self) -> list[str]:
        return [parameter.name for parameter in self.config.searched if not parameter.is_conditional]


class CmaEs(Sampler):
    """Moves a normal distribution towards the best complete trials, a generation at a time. Use `scheduler: none`."""

    name = "cma-es"
    parameters: ClassVar[Mapping[str, SearchKey]] = {
        "popsize": SearchKey(
            _Popsize,
            "auto",
            about="Trials in a generation of `cma-es`, at least 4. `auto` is 4 for one parameter, 6 for two, 7"
            " for three.",
        ),
        "consider_pruned_trials": SearchKey(
            bool, False, about="Whether `cma-es` learns from stopped trials, by their last report."
        ),
        "with_margin": SearchKey(bool, False, about="`cma-es` for ranges of few integers. Excludes `lr_adapt`."),
        "lr_adapt": SearchKey(bool, False, about="`cma-es` for noisy scores. Excludes `with_margin`."),
    }

    def optuna_sampler(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
        from loraxs_search.samplers._optuna import KnownSpaceCmaEs

        options = dict(self.config.parameters)
        popsize = options.pop("popsize")
        with experimental():  # the three flags, since Optuna 2.0, 3.1 and 3.3
            return KnownSpaceCmaEs(
                _named(distributions, self._together),
                seed=seed,
                popsize=None if popsize == "auto" else popsize,
                warn_independent_sampling=False,
                **options,
            )

    def faults(self) -> Iterator[str]:
        if self.config.num_objectives > 1:
            yield "must be tpe, random, gp or qmc beside search.objectives, but got cma-es, which has one objective."
        if self.config.searched and not self._together:
            law = "must be tpe, random, gp or qmc where no range of numbers is searched in all trials"
            yield f"{law}, but got cma-es, which cannot choose: give a parameter `uniform`, `log_uniform` or `int`."
        if self.config.parameters["with_margin"] and self.config.parameters["lr_adapt"]:
            yield "cma-es must have with_margin or lr_adapt, but got both: leave one out."

    def advice(self) -> Iterator[str]:
        yield from _random_advice(self, self._together)
        if not self.config.parameters["consider_pruned_trials"]:
            yield from _complete_advice(self, self._population)

    @property
    def _together(self) -> list[str]:
        return [each.name for each in self.config.searched if each.is_number and not each.is_conditional]

    @property
    def _population(self) -> int:
        from math import log

        popsize = self.config.parameters["popsize"]
        return 4 + int(3 * log(max(1, len(self._together)))) if popsize == "auto" else int(popsize)


class QMC(Sampler):
    """Spreads trials evenly over the whole space. Best with 8, 16, 32, ... trials.

    Scrambled by default, unlike in Optuna: the first point is then no corner of the space, and seeds differ. All trials
    take points of one sequence, hence the search's seed.
    """

    name = "qmc"
    parameters: ClassVar[Mapping[str, SearchKey]] = {
        "qmc_type": SearchKey(Literal["sobol", "halton"], "sobol", about="The sequence of `qmc`."),
        "scramble": SearchKey(
            bool,
            True,
            about="`qmc` shuffles its sequence by the seed. Without it, the sequence begins in a corner of the space.",
        ),
    }

    def optuna_sampler(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
        from loraxs_search.samplers._optuna import KnownSpaceQMC

        with experimental():  # since 3.0
            return KnownSpaceQMC(
                distributions, seed=self.config.seed, warn_independent_sampling=False, **self.config.parameters
            )


def _named(distributions: Mapping[str, BaseDistribution], names: Sequence[str]) -> dict[str, BaseDistribution]:
    return {name: distributions[name] for name in names}


def _random_advice(sampler: Sampler, together: Sequence[str]) -> Iterator[str]:
    """Say which parameters the sampler draws at random instead of together."""
    at_random = [each for each in sampler.config.searched if each.name not in together]
    if at_random:
        drawn = ", ".join(map(_described, at_random))
        yield f"{sampler.name} draws {drawn} at random; it searches {', '.join(together)}"


def _described(parameter: SearchedParameter) -> str:
    return f"{parameter.name} ({'conditional' if parameter.is_conditional else 'a choice'})"


def _complete_advice(sampler: Sampler, needed: int) -> Iterator[str]:
    """Say where it learns little, as it learns from complete trials alone."""
    config = sampler.config
    if config.num_trials <= needed:
        yield f"{sampler.name} learns from {needed} complete trials on, and the search has {config.num_trials}"
    elif config.stops_early:
        yield (
            f"{sampler.name} learns from complete trials alone, from {needed} of them on, and the scheduler stops"
            " trials early: write scheduler: none, or sampler: tpe"
        )


def experimental() -> warnings.catch_warnings:
    """Return a context in which Optuna does not warn of what it calls experimental."""
    from optuna.exceptions import ExperimentalWarning

    return warnings.catch_warnings(action="ignore", category=ExperimentalWarning)
