"""A search space: what a file says, checked, and what a trial draws from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from loraxs_search.methods import FactorSet, Method, Possible, get_method
from loraxs_search.records import (
    BaseModelRef,
    Estimate,
    Head,
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
from loraxs_search.search_space._parameter_specs import DEFAULT_TARGET_MODULES

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Space:
    """A checked search space. Plain records all through: it pickles, and equal files give equal spaces.

    Args:
        name: The file's name without its suffix.
        text: The YAML, with overrides applied.
        source: The file as it was named.
        folder: Absolute folder that relative paths in `text` start from.
        method: The registered method that every trial trains.
        parameters: By name, in the file's order.
        start_from: The registered adapter that trials start from, as it was named; None where they start anew.
    """

    name: str
    text: str
    source: str
    folder: str
    task: Task
    base_model: BaseModelRef
    method: str
    parameters: Mapping[str, Parameter]
    search: SearchPlan
    promotion: PromotionRule
    start_from: str | None = None

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
        method = self._method
        names = resolve_modules(str(given.pop("target_modules", DEFAULT_TARGET_MODULES)), modules)
        own = {name: given.pop(name) for name in method.parameters if name in given}
        method.check(method.with_defaults(own), [module for module in modules if module.name in set(names)])
        given.setdefault("head_learning_rate", given["learning_rate"])
        return Hyperparameters(
            **given,
            **method.fields(own, self._possible()),
            method=self.method,
            target_modules=names,
            max_steps=self.search.max_steps,
            seed=seed,
        )

    def factor_sets(self) -> tuple[FactorSet, ...]:
        """Return the factors that trials share, to be computed before the first of them."""
        return self._method.factor_sets(self._possible())

    def estimates(self) -> tuple[Estimate, ...]:
        """Return what is estimated on the task's rows before the first trial."""
        found = self._method.estimates(self._possible(), self._heads())
        return tuple(replace(estimate, seed=self.search.seed) for estimate in found)

    @property
    def is_packable(self) -> bool:
        """Whether the method's trials can share passes."""
        return self._method.packed is not None

    def largest(self) -> tuple[int, int]:
        """Return the largest batch size and the largest rank a trial may have; the rank is 0 where there is none."""
        batch, rank = self.parameters.get("batch_size"), self.parameters.get("rank")
        sizes = [Hyperparameters.batch_size] if batch is None else [int(size) for size in batch.possible or ()]
        return max(sizes), 0 if rank is None else max(int(value) for value in rank.possible or ())

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
        distributions = ((name, parameter.distribution.to_optuna()) for name, parameter in self.parameters.items())
        return {name: distribution for name, distribution in distributions if distribution is not None}

    def grid_size(self) -> int | None:
        """Return how many different params there are, or None when a parameter is continuous."""
        return count_configurations(self.parameters)

    # ---- inside ------------------------------------------------------------------------------------------------------
    @property
    def _method(self) -> Method:
        return get_method(self.method)

    def _heads(self) -> Sequence[Head]:
        """Return how a trial's head may be trained."""
        values = self._possible_values("head", Hyperparameters.head)
        return [cast("Head", value) for value in values or ()]

    def _possible(self) -> Possible:
        """Return every value of the method's own parameters that a trial may have, its default included."""
        return {name: self._possible_values(name, spec.default) for name, spec in self._method.parameters.items()}

    def _possible_values(self, name: str, default: Scalar | None) -> Sequence[Scalar] | None:
        parameter = self.parameters.get(name)
        values = () if parameter is None else parameter.possible
        may_be_left_out = parameter is None or (parameter.when and parameter.otherwise is None)
        if values is None or not may_be_left_out or default is None:
            return values
        return tuple(dict.fromkeys((*values, default)))
