"""The contract of a sampler: what proposes the params of the next trial."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from loraxs_search.plugins import ParameterSpec
from loraxs_search.records.literals import Scalar

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class SearchedParameter:
    """A parameter that trials draw.

    Args:
        name: That Optuna knows it by: each alternative of a parameter has its own.
        is_conditional: Whether some trials lack it.
    """

    name: str
    is_conditional: bool


@dataclass(frozen=True)
class SamplerConfig:
    """The search that a sampler proposes for.

    Args:
        seed: Of the search.
        num_trials: Of the search.
        stops_early: Whether a scheduler may stop trials.
        parameters: A value for each of the sampler's `parameters`.
        searched: What trials draw, in the space's order.
    """

    seed: int
    num_trials: int
    stops_early: bool
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    searched: Sequence[SearchedParameter] = ()


class Sampler(ABC):
    """Proposes params by the trials so far; a subclass writes `optuna_sampler`, and `faults` if it has limits.

    Who calls: `Proposer` in the search's loop, from one thread, once before each trial starts. It asks for a new Optuna
    sampler each time, which sees the study as it is then: complete, stopped and running trials. The loop waits for the
    answer: a second is acceptable.

    What may be repeated: a proposal is recorded before a trial starts by it. A driver that is killed in between asks
    again, and a driver that resumes a study has nothing but the log. Hence the same config, seed and history give the
    same proposal. The sampler reads no clock, and keeps nothing in itself or in files. What it must remember it writes
    to the trial's system attributes in Optuna: they are recorded with the proposal, as JSON, and shown at the next one.
    They come from the study's files, so nothing in them is run or unpickled unchecked.

    Conditions: `Space.suggest` asks only for the parameters that a trial has. The first trials are not the
    sampler's: each method has one, by its recipe, the rest drawn at random. Neither are those that a person adds, of
    which only what is left out is proposed. The sampler sees them all.

    Scores: a trial whose score is not a number is shown as failed, as Optuna has it.

    Limits: what a sampler cannot search is a fault, reported with those of the space before anything starts. It never
    falls back to another way of sampling without saying so: what it draws at random it says in `advice`.

    Raises: an exception ends the search with a message, and no trial is to blame.

    A subclass is registered under its `name`: in `SAMPLERS`, or by an entry point of the group
    `loraxs_search.samplers`. A space names it in `search.sampler` and gives its parameters beside that.
    `tests/contracts/test_samplers.py` runs on every entry.
    """

    name: ClassVar[str]
    parameters: ClassVar[Mapping[str, ParameterSpec]] = {}

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config

    @abstractmethod
    def optuna_sampler(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
        """Return what draws one trial.

        Args:
            seed: Of this trial, 32 bits. A sampler that spreads its points over all trials takes the search's.
            distributions: Of everything that trials draw, by the names in `config.searched`.
        """

    def faults(self) -> Iterator[str]:
        """Yield why it cannot do this search, each as a rule and what to write instead."""
        yield from ()

    def advice(self) -> Iterator[str]:
        """Yield what a user should know before starting this search, such as what is drawn at random."""
        yield from ()
