"""A search space: what a file says, checked, and what a trial draws from it."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import eq
from typing import TYPE_CHECKING, Any, cast

from loraxs_search.errors import did_you_mean, one_of
from loraxs_search.methods import get_method
from loraxs_search.methods._base import FactorSet, Method, Possible
from loraxs_search.records.base import BaseModelRef, LinearModule
from loraxs_search.records.host import LargestTrial
from loraxs_search.records.literals import Head, Scalar
from loraxs_search.records.promotion import PromotionRule
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.records.trial import Hyperparameters, PeftSettings
from loraxs_search.samplers._base import SearchedParameter
from loraxs_search.search_space.distributions import (
    METHOD,
    Parameter,
    branches_of,
    drawing_order,
    mentioned_values,
    parameters_of,
    reachable_shapes,
)
from loraxs_search.search_space.document import shown
from loraxs_search.search_space.parameter_specs import (
    DEFAULT_TARGET_MODULES,
    method_spec,
    parameter_specs,
    resolve_modules,
)
from loraxs_search.tasks.kinds import kind_of

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
        methods: Those that trials train; where there are several, `method` is the first parameter.
        peft_methods: What the names stand for that the space gives to methods of PEFT's.
        parameters: By name, in the file's order.
        start_from: The registered adapter that trials start from, as it was named; None if they start from scratch.
        defaults: By method what a parameter is that a trial leaves out, so that a later version's defaults change no
            stored study.
    """

    name: str
    text: str
    source: str
    folder: str
    task: Task
    base_model: BaseModelRef
    methods: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    search: SearchPlan
    promotion: PromotionRule
    start_from: str | None = None
    peft_methods: Mapping[str, PeftSettings] = field(default_factory=dict)
    defaults: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)

    def suggest(self, trial: BaseTrial) -> dict[str, Scalar]:
        """Draw a trial's params, constants included; a parameter whose condition does not hold is left out."""
        drawn: dict[str, Scalar] = {}
        for name in drawing_order(self.parameters.values()):
            parameter = self.parameters[name]
            index = parameter.chosen(drawn)
            if index is not None:
                distribution = parameter.alternatives[index].distribution
                drawn[name] = distribution.suggest(trial, parameter.drawn_name(index))
        return {name: drawn[name] for name in self.parameters if name in drawn}

    def drawn_params(self, params: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return a trial's params under the names that `suggest` draws them by: each alternative has its own."""
        drawn: dict[str, Scalar] = {}
        for name, parameter in self.parameters.items():
            index = parameter.chosen(params)
            if index is not None and name in params:
                drawn[parameter.drawn_name(index)] = params[name]
        return drawn

    def method(self, name: str) -> Method:
        """Return the method that a name stands for in this space."""
        return get_method(name, self.peft_methods.get(name))

    def method_of(self, params: Mapping[str, Scalar]) -> Method:
        """Return the method that a trial with these params trains."""
        return self.method(str(params.get(METHOD, self.methods[0])))

    def hyperparameters(
        self, params: Mapping[str, Scalar], modules: Sequence[LinearModule], seed: int
    ) -> Hyperparameters:
        """Turn drawn params into what decides a trial's numbers; what they leave out takes its default.

        The head learns at `learning_rate` unless `head_learning_rate` is given.

        Raises:
            TargetModulesError: the module group matches nothing in `modules`.
            RankError: the rank is above the smaller side of one of the modules.
        """
        method = self.method_of(params)
        given: dict[str, Any] = {**self.defaults.get(method.name, {}), **params}
        given.pop(METHOD, None)
        names = resolve_modules(str(given.pop("target_modules", DEFAULT_TARGET_MODULES)), modules)
        own = {name: given.pop(name) for name in method.parameters if name in given}
        method.check(method.with_defaults(own), [module for module in modules if module.name in set(names)])
        given.setdefault("head_learning_rate", given["learning_rate"])
        return Hyperparameters(
            **given,
            **method.fields(own, self._possible(method)),
            method=method.name,
            peft=self.peft_methods.get(method.name),
            target_modules=names,
            max_steps=self.search.max_steps,
            seed=seed,
        )

    def factor_sets(self) -> tuple[FactorSet, ...]:
        """Return the factors that trials share, to be computed before the first of them."""
        methods = map(self.method, self.methods)
        return tuple(dict.fromkeys(each for m in methods for each in m.factor_sets(self._possible(m))))

    @property
    def is_packable(self) -> bool:
        """Whether trials of some method can share passes."""
        return len(self.unpackable_methods) < len(self.methods)

    @property
    def unpackable_methods(self) -> tuple[str, ...]:
        """The methods whose trials cannot share passes: each trains alone."""
        return tuple(name for name in self.methods if not any(self.can_pack(self.method(name))))

    def may_be_candidate(self, method: str) -> bool:
        """Whether trials of a method may be candidates: those that the rule names, by default all but baselines."""
        named = self.promotion.methods
        return method in named if named else not self.method(method).is_baseline

    def largest(self) -> LargestTrial:
        """Return the largest trial that takes a slot: its batch size, and the adapters that may be the largest."""
        packed = [
            self.method(name) for name in self.methods if not self.is_packable or name not in self.unpackable_methods
        ]
        batches = [
            int(value)
            for method in packed
            for value in self.possible_values(method.name, "batch_size", Hyperparameters.batch_size) or ()
        ]
        adapters = [(m.name, shape) for m in packed if m.packed for shape in self._reachable(m, m.sized_by)]
        return LargestTrial(max(batches), tuple(sorted(adapters, key=repr)))

    def parameters_of(self, method: str) -> dict[str, Parameter]:
        """Return the parameters of the trials of one method, without the choice of the method."""
        return parameters_of(self.parameters, method)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distribution of each parameter that is searched, in the file's order."""
        return {
            parameter.drawn_name(index): alternative.distribution.optuna()
            for parameter in self.parameters.values()
            for index, alternative in enumerate(parameter.alternatives)
            if alternative.distribution.form != "constant"
        }

    def searched(self) -> tuple[SearchedParameter, ...]:
        """Return what samplers may know of each parameter that is searched, in the file's order."""
        return searched_parameters(self.parameters)

    def drawn_names(self, name: str) -> list[str]:
        """Return the names that `suggest` draws a parameter by, one for each alternative."""
        parameter = self.parameters[name]
        return [parameter.drawn_name(index) for index in range(len(parameter.alternatives))]

    def first_params(self) -> list[dict[str, Scalar]]:
        """Return what the first trials draw: each trains another method, by its recipe as far as the space has it."""
        searched = {parameter.name for parameter in self.searched()}
        firsts = (self.drawn_params(self._by_recipe(method)) for method in self.methods)
        drawn = ({name: value for name, value in params.items() if name in searched} for params in firsts)
        return [params for params in drawn if params]

    def follows_recipe(self, params: Mapping[str, Scalar]) -> bool:
        """Whether a trial learns at the rate of its method's recipe, and has the rest of it that the space has."""
        method = self.method_of(params).name
        is_rate = params.get("learning_rate") in self._recipe(method, params).get("learning_rate", ())
        return is_rate and self._by_recipe(method).items() <= params.items()

    def grid_size(self) -> int | None:
        """Return how many different params there are, or None when a parameter is continuous."""
        of_methods = [self.parameters_of(method) for method in self.methods]
        if any(parameter.size is None for parameters in of_methods for parameter in parameters.values()):
            return None
        branches = (branches_of(parameters, mentioned_values(parameters)) for parameters in of_methods)
        return sum(weight for found in branches for _, weight in found)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _recipe(self, method: str, params: Mapping[str, Scalar]) -> Mapping[str, Sequence[Scalar]]:
        """Return a method's recipe; recipes are of tasks with a head."""
        return self.method(method).recipe(params) if kind_of(self.task).model.num_outputs is not None else {}

    def _by_recipe(self, method: str) -> dict[str, Scalar]:
        """Return what a trial by a method's recipe has: constants, and the recipe as far as it may be drawn."""
        known: dict[str, Scalar] = {METHOD: method} if len(self.methods) > 1 else {}
        try:
            order = drawing_order(self.parameters.values(), {"learning_rate": "rank"})
        except graphlib.CycleError:  # the rank hangs on the rate
            order = drawing_order(self.parameters.values())
        for name in order:
            parameter = self.parameters[name]
            if (index := parameter.chosen(known)) is None:
                continue
            distribution = parameter.alternatives[index].distribution
            if distribution.form == "constant":
                (known[name],) = distribution.choices
                continue
            wanted = self._recipe(method, known).get(name, ())
            found = (distribution.find(value, eq) for value in wanted)
            if (value := next((own for own in found if own is not None), None)) is not None:
                known[name] = value
        return known

    def can_pack(self, method: Method) -> list[bool]:
        """Return whether trials of a method can share passes, for each way in which its words and flags can fall."""
        named = [name for name, spec in method.parameters.items() if spec.kind in ("name", "flag")]
        return [method.can_pack(method.with_defaults(own)) for own in self._reachable(method, named)]

    def heads(self, method: Method) -> Sequence[Head]:
        """Return how the head of a method's trials may be trained."""
        values = self.possible_values(method.name, "head", Hyperparameters.head)
        return [cast("Head", value) for value in values or ()]

    def head_inits(self) -> set[Scalar]:
        """Return where the heads of trials may start."""
        default = Hyperparameters.head_init
        return {value for name in self.methods for value in self.possible_values(name, "head_init", default) or ()}

    def _reachable(self, method: Method, names: Sequence[str]) -> list[dict[str, Scalar]]:
        """Return what these parameters of a method may be together in a trial."""
        own = self.defaults.get(method.name, {})
        defaults = {name: own.get(name, method.parameters[name].default) for name in names}
        return reachable_shapes(self.parameters_of(method.name), defaults)

    def _possible(self, method: Method) -> Possible:
        """Return every value of a method's own parameters that a trial may have, its default included."""
        return {name: self.possible_values(method.name, name, spec.default) for name, spec in method.parameters.items()}

    def possible_values(self, method: str, name: str, default: Scalar | None) -> Sequence[Scalar] | None:
        """Return every value of a parameter that trials of a method may have; None for a range.

        Args:
            default: Of a trial that leaves it out, if the space itself has recorded none.
        """
        default = self.defaults.get(method, {}).get(name, default)
        parameter = self.parameters_of(method).get(name)
        values = () if parameter is None else parameter.possible
        # Conditions that complete each other are not seen to.
        is_always_there = parameter is not None and not all(each.when for each in parameter.alternatives)
        if values is None or default is None or is_always_there:
            return values
        return tuple(dict.fromkeys((*values, default)))


def searched_parameters(parameters: Mapping[str, Parameter]) -> tuple[SearchedParameter, ...]:
    """Return what samplers may know of each of these parameters that is searched."""
    return tuple(
        SearchedParameter(
            parameter.drawn_name(index),
            is_conditional=bool(parameter.methods or alternative.when or index),
        )
        for parameter in parameters.values()
        for index, alternative in enumerate(parameter.alternatives)
        if alternative.distribution.form != "constant"
    )


# ---- params that a user gives ----
def place_given(
    space: Space, given: Mapping[str, Scalar], source: Mapping[str, Scalar] | None = None
) -> tuple[dict[str, Scalar], list[str]]:
    """Check some of the params of a trial, whose others are those of another trial, or left to the sampler.

    What hangs on a condition needs the parameters that decide it to be given too: the sampler might choose others.

    Args:
        source: Params of the other trial; those that a trial with the given ones does not have are left behind.
    Returns:
        Params as this space has them, and faults: what lies outside of it.
    """
    wanted = {**(source or {}), **given}
    known, placed, faults = dict[str, Scalar](), dict[str, Scalar](), dict[str, str]()
    undecided = set[str]()  # left to the sampler
    for name in drawing_order(space.parameters.values()):
        parameter, value = space.parameters[name], wanted.get(name)
        index, needed = parameter.chosen(known), [other for other in parameter.parents() if other in undecided]
        if value is None or (name not in given and index is None):
            if needed:
                undecided.add(name)
            elif index is not None and (drawn := parameter.alternatives[index].distribution).form == "constant":
                (known[name],) = drawn.choices
            elif index is not None:
                undecided.add(name)
        elif needed:
            missing = " ".join(f"--set {other}=..." for other in dict.fromkeys(needed))
            faults[name] = f"`{name}` must come with what decides whether a trial has it: add {missing}."
        else:
            try:
                known[name] = placed[name] = _own_value(space, parameter, known, value)
            except ValueError as error:
                faults[name] = f"`{name}` {error}, but got {shown(value)}."
    for name in given:
        if name not in space.parameters:
            first, listed = did_you_mean(name, space.parameters), one_of(space.parameters, name)
            faults[name] = f"{first}`{name}` must be a parameter of the space: {listed}."
    return placed, list(faults.values())


def _own_value(space: Space, parameter: Parameter, known: Mapping[str, Scalar], given: Scalar) -> Scalar:
    """Return a given value as the space has it, in the parameter's own type.

    Args:
        known: The trial's params that come before it.
    Raises:
        ValueError: a trial cannot have it; the message states the law.
    """
    name, spec = parameter.name, method_spec(space.methods)
    if name != METHOD:  # where methods differ in the law, the trial's method decides
        takers = parameter.methods or space.methods
        method = str(known.get(METHOD, takers[0]))
        spec = parameter_specs(space.method(method if method in takers else takers[0]))[name]
    value = given
    if isinstance(given, str) and spec.kind == "int" and given.strip("+-").isdecimal():
        value = int(given)
    value = spec.check(value)
    if (index := parameter.chosen(known)) is None:
        others = ", ".join(f"{other} {known.get(other, 'left out')}" for other in dict.fromkeys(parameter.parents()))
        raise ValueError(f"must be left out of a trial with {others}")
    distribution = parameter.alternatives[index].distribution
    if (own := distribution.find(value, spec.same)) is None:
        raise ValueError(f"must be as the space has it, {distribution}")
    return own
