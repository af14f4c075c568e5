"""A search space: what a file says, checked, and what a trial draws from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from loraxs_search.errors import RankError
from loraxs_search.records import (
    BaseModelRef,
    Basis,
    Hyperparameters,
    LinearModule,
    PromotionRule,
    Scalar,
    SearchPlan,
    Task,
)
from loraxs_search.search_space._conditions import drawing_order
from loraxs_search.search_space._counting import count_configurations
from loraxs_search.search_space._distributions import Parameter
from loraxs_search.search_space._modules import resolve_modules

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

DEFAULT_TARGET_MODULES = "all-linear"
_SMALLEST_FACTOR_RANK = 64


@dataclass(frozen=True)
class Space:
    """A checked search space. Plain records all through: it pickles, and equal files give equal spaces.

    Args:
        name: The file's name without its suffix.
        text: The YAML, with overrides applied.
        source: The file as it was named.
        folder: Absolute folder that relative paths in `text` start from.
        parameters: By name, in the file's order.
    """

    name: str
    text: str
    source: str
    folder: str
    task: Task
    base_model: BaseModelRef
    parameters: Mapping[str, Parameter]
    search: SearchPlan
    promotion: PromotionRule

    def suggest(self, trial: BaseTrial) -> dict[str, Scalar]:
        """Draw a trial's params, constants included; a parameter whose condition does not hold is left out."""
        drawn: dict[str, Scalar] = {}
        for name in drawing_order(self.parameters.values()):
            parameter = self.parameters[name]
            if parameter.present(drawn):
                drawn[name] = parameter.distribution.suggest(trial, name)
            elif parameter.otherwise is not None:
                drawn[name] = parameter.otherwise
        return {name: drawn[name] for name in self.parameters if name in drawn}

    def hyperparameters(
        self, params: Mapping[str, Scalar], modules: Sequence[LinearModule], seed: int
    ) -> Hyperparameters:
        """Turn drawn params into what decides a trial's numbers; what they leave out takes the record's default.

        The head learns at `learning_rate` unless `head_learning_rate` is given.

        Raises:
            TargetModulesError: the module group matches nothing in `modules`.
            RankError: the rank is above the smaller side of one of the modules.
        """
        given: dict[str, Any] = dict(params)
        expression = str(given.pop("target_modules", DEFAULT_TARGET_MODULES))
        names = resolve_modules(expression, modules)
        check_rank(int(given["rank"]), names, modules)
        given.setdefault("head_learning_rate", given["learning_rate"])
        return Hyperparameters(
            **given,
            target_modules=names,
            max_steps=self.search.max_steps,
            seed=seed,
            factor_rank=self.factor_rank(),
        )

    def max_rank(self) -> int:
        """Return the largest rank a trial may have."""
        return max(int(rank) for rank in self.parameters["rank"].possible or ())

    def factor_rank(self) -> int:
        """Return the rank at which factors are computed and stored for every trial."""
        return factor_rank_bucket(self.max_rank())

    def bases(self) -> tuple[Basis, ...]:
        """Return every basis a trial may have."""
        parameter = self.parameters.get("basis")
        found = () if parameter is None else parameter.possible or ()
        if parameter is None or (parameter.when and parameter.otherwise is None):
            found = (*found, Hyperparameters.basis)
        return cast("tuple[Basis, ...]", tuple(dict.fromkeys(map(str, found))))

    def largest(self) -> tuple[int, int]:
        """Return the largest batch size and the largest rank a trial may have."""
        batch = self.parameters.get("batch_size")
        sizes = [Hyperparameters.batch_size] if batch is None else [int(size) for size in batch.possible or ()]
        return max(sizes), self.max_rank()

    def target_groups(self) -> tuple[str, ...]:
        """Return every module group expression a trial may have."""
        parameter = self.parameters.get("target_modules")
        if parameter is None:
            return (DEFAULT_TARGET_MODULES,)
        groups = [str(value) for value in parameter.possible or ()]
        if parameter.when and parameter.otherwise is None:
            groups.append(DEFAULT_TARGET_MODULES)
        return tuple(dict.fromkeys(groups))

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distribution of each parameter that is searched, in the file's order."""
        found = {name: parameter.distribution.to_optuna() for name, parameter in self.parameters.items()}
        return {name: distribution for name, distribution in found.items() if distribution is not None}

    def grid_size(self) -> int | None:
        """Return how many different params there are, or None when a parameter is continuous."""
        return count_configurations(self.parameters)


def check_rank(rank: int, names: Sequence[str], modules: Sequence[LinearModule]) -> None:
    """Hold `rank` against the smaller side of each named module.

    Raises:
        RankError: it is above one of them; the message names the smallest.
    """
    sides = {module.name: min(module.in_features, module.out_features) for module in modules}
    smallest = min(names, key=sides.__getitem__)
    if not 1 <= rank <= sides[smallest]:
        raise RankError(
            f"`rank` must be in 1..{sides[smallest]}, but got rank={rank} for {smallest}.",
            hint="lower the rank, or leave this module out of target_modules",
        )


def factor_rank_bucket(max_rank: int) -> int:
    """Return the rank at which factors are computed and stored: a power of two, at least 64, so that spaces share them.

    It may be above a small module's side; the factors of that module then end at its side.
    """
    return max(_SMALLEST_FACTOR_RANK, 1 << (max_rank - 1).bit_length())
