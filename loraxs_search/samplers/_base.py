"""The contract of a sampler: what proposes the params of the next trial."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from loraxs_search.plugins import ParameterSpec, with_defaults
from loraxs_search.records.search import SearchPlan

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


class Sampler(ABC):
    """Proposes params by the trials so far; a subclass writes `optuna_sampler`, and `faults` if it has limits.

    Who calls: `Proposer` in the search's loop, from one thread, once before each trial starts. It asks for a new Optuna
    sampler each time, which sees the study as it is then: complete, stopped and running trials. The loop waits for the
    answer: a second is acceptable.

    What may be repeated: a proposal is recorded before a trial starts by it. A driver that is killed in between asks
    again, and a driver that resumes a study has nothing but the log. Hence the same plan, seed and history give the
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

    Args:
        plan: The search's. Its `params` hold the sampler's `parameters`.
        searched: What trials draw, in the space's order, and whether some trials lack it. The names are those that
            Optuna knows: each alternative of a parameter has its own.
    Attributes:
        params: A value for each of the sampler's `parameters`.
    """

    name: ClassVar[str]
    parameters: ClassVar[Mapping[str, ParameterSpec]] = {}

    def __init__(self, plan: SearchPlan, searched: Mapping[str, bool]) -> None:
        self.plan, self.searched = plan, searched
        self.params = with_defaults(self.parameters, plan.params)

    @abstractmethod
    def optuna_sampler(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
        """Return what draws one trial.

        Args:
            seed: Of this trial, 32 bits. A sampler that spreads its points over all trials takes the search's.
            distributions: Of everything that trials draw, by the names in `searched`.
        """

    def faults(self) -> Iterator[str]:
        """Yield why it cannot do this search, each as a rule and what to write instead."""
        yield from ()

    def advice(self) -> Iterator[str]:
        """Yield what a user should know before starting this search, such as what is drawn at random."""
        yield from ()
