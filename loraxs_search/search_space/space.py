"""A search space: what a file says, checked; what a trial draws from it, and what it amounts to on a base model."""

from __future__ import annotations

import functools
import graphlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, eq
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import both, did_you_mean, one_of
from loraxs_search.methods import get_method
from loraxs_search.methods._base import Method, Possible, Shapes
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.adapter import LargestTrial
from loraxs_search.records.codec import Basis, Scalar
from loraxs_search.records.search import PromotionRule, SearchPlan
from loraxs_search.records.task import BaseModelRef, LinearModule, Task
from loraxs_search.records.trial import AdapterSize, Hyperparameters, PeftSettings
from loraxs_search.samplers import SAMPLERS
from loraxs_search.search_space.document import fail_with, shown
from loraxs_search.search_space.parameters import (
    METHOD,
    Parameter,
    drawing_order,
    method_spec,
    parameter_specs,
    parameters_of,
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
            UsageError: the module group matches nothing in `modules`, or the rank is above the smaller side of one.
        """
        method = self.method_of(params)
        given: dict[str, Any] = {**self.defaults.get(method.name, {}), **params}
        given.pop(METHOD, None)
        names = resolve_modules(str(given.pop("target_modules")), modules)
        own = {name: given.pop(name) for name in method.parameters if name in given}
        method.check(method.with_defaults(own), [module for module in modules if module.name in set(names)])
        given.setdefault("head_learning_rate", given["learning_rate"])
        return Hyperparameters(
            **given,
            **method.fields(own, self.possible(method)),
            method=method.name,
            peft=self.peft_methods.get(method.name),
            target_modules=names,
            max_steps=self.search.max_steps,
            seed=seed,
        )

    def factor_sets(self) -> tuple[tuple[Basis, int], ...]:
        """Return basis and rank of the factors that trials share, to be computed before the first of them."""
        methods = map(self.method, self.methods)
        return tuple(dict.fromkeys(each for m in methods for each in m.factor_sets(self.possible(m))))

    @property
    def is_packable(self) -> bool:
        """Whether trials of some method can share passes."""
        return len(self.unpackable_methods) < len(self.methods)

    @property
    def unpackable_methods(self) -> tuple[str, ...]:
        """The methods whose trials cannot share passes: each trains unpacked."""
        return tuple(name for name in self.methods if not self.method(name).packs)

    def may_be_candidate(self, method: str) -> bool:
        """Whether trials of a method may be candidates: those that the rule names, by default all but baselines."""
        named = self.promotion.methods
        return method in named if named else not self.method(method).is_baseline

    def largest(self) -> LargestTrial:
        """Return the largest trial that takes a slot: its batch size, and the adapters that may be the largest."""
        unpacked = self.unpackable_methods if self.is_packable else ()
        packed = [self.method(name) for name in self.methods if name not in unpacked]
        batches = [int(value) for m in packed for value in self.possible_values(m.name, "batch_size") or ()]
        adapters = [(m.name, shape) for m in packed if m.packs for shape in self.reachable(m, m.sized_by)]
        return LargestTrial(max(batches), tuple(sorted(adapters, key=repr)))

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distribution of each parameter that is searched, in the file's order."""
        return {
            parameter.drawn_name(index): alternative.distribution.optuna()
            for parameter in self.parameters.values()
            for index, alternative in enumerate(parameter.alternatives)
            if alternative.distribution.form != "constant"
        }

    def searched(self) -> dict[str, bool]:
        """Return each parameter that is searched, in the file's order, and whether some trials lack it."""
        return searched_parameters(self.parameters)

    def first_params(self) -> list[dict[str, Scalar]]:
        """Return what the first trials draw: each trains another method, by its recipe as far as the space has it."""
        searched = self.searched()
        firsts = (self.drawn_params(self._by_recipe(method)) for method in self.methods)
        drawn = ({name: value for name, value in params.items() if name in searched} for params in firsts)
        return [params for params in drawn if params]

    def recipe_params(self) -> dict[str, Scalar]:
        """Return the params of a trial that draws what the first one does, of a space with the whole recipe."""
        from optuna.trial import FixedTrial

        return self.suggest(FixedTrial(next(iter(self.first_params()), {})))

    def follows_recipe(self, params: Mapping[str, Scalar]) -> bool:
        """Whether a trial learns at the rate of its method's recipe, and has the rest of it that the space has."""
        method = self.method_of(params).name
        is_rate = params.get("learning_rate") in self._recipe(method, params).get("learning_rate", ())
        return is_rate and self._by_recipe(method).items() <= params.items()

    def grid_size(self) -> int | None:
        """Return how many different params there are, or None when a parameter is continuous."""
        of_methods = [parameters_of(self.parameters, method) for method in self.methods]
        if any(parameter.size is None for parameters in of_methods for parameter in parameters.values()):
            return None
        branches = (_branches_of(parameters, _mentioned_values(parameters)) for parameters in of_methods)
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

    def reachable(self, method: Method, names: Sequence[str], *, ends: bool = True) -> list[dict[str, Scalar]]:
        """Return the values that these parameters may have together in a trial of a method.

        Args:
            ends: Of numbers only the smallest and the largest; else so only where there are more than 64.
        """
        parameters, defaults = parameters_of(self.parameters, method.name), self.defaults.get(method.name, {})
        needed, waiting = dict[str, Parameter](), [name for name in names if name in parameters]
        while waiting:  # with those that conditions hang on
            name = waiting.pop()
            needed[name] = parameters[name]
            waiting += [other for other in parameters[name].parents() if other not in needed]
        distinct = _mentioned_values(needed)
        for name in needed.keys() & set(names):
            named = distinct.setdefault(name, set())
            mentioned = set(named)
            for alternative in needed[name].alternatives:
                others = [value for value in alternative.distribution.values or () if value not in mentioned]
                numbers = [value for value in others if isinstance(value, int | float)]
                takes_ends = numbers and (ends or len(others) > _LISTED)
                named.update((min(numbers), max(numbers)) if takes_ends else others)
        shapes = dict[tuple[tuple[str, Scalar], ...], dict[str, Scalar]]()
        for params, _ in _branches_of(needed, distinct):
            # What is missing although its condition holds is between the ends.
            if any(name in needed and name not in params and needed[name].chosen(params) is not None for name in names):
                continue
            known = {**{name: defaults[name] for name in names if name in defaults}, **params}
            shape = {name: known[name] for name in names if name in known}
            shapes.setdefault(tuple(shape.items()), shape)
        return list(shapes.values())

    def possible(self, method: Method) -> Possible:
        """Return every value of a method's own parameters that a trial may have, its default included."""
        return {name: self.possible_values(method.name, name) for name in method.parameters}

    def possible_values(self, method: str, name: str) -> Sequence[Scalar] | None:
        """Return every value of a parameter that a method's trials may have, its default included; None for a range."""
        default, parameter = self.defaults.get(method, {}).get(name), parameters_of(self.parameters, method).get(name)
        values = () if parameter is None else parameter.possible
        # Conditions that complete each other are not seen to.
        is_always_there = parameter is not None and not all(each.when for each in parameter.alternatives)
        if values is None or default is None or is_always_there:
            return values
        return tuple(dict.fromkeys((*values, default)))


_LISTED = 64  # of more numbers than these, `reachable` takes only the ends


def searched_parameters(parameters: Mapping[str, Parameter]) -> dict[str, bool]:
    """Return the name of each of these parameters that is searched, and whether some trials lack it."""
    return {
        parameter.drawn_name(index): bool(parameter.methods or alternative.when or index)
        for parameter in parameters.values()
        for index, alternative in enumerate(parameter.alternatives)
        if alternative.distribution.form != "constant"
    }


# ---- configurations are counted, conditions included, without listing them ----
def _branches_of(
    parameters: Mapping[str, Parameter], distinct: Mapping[str, set[Scalar]]
) -> Iterator[tuple[dict[str, Scalar], int]]:
    """Yield each way in which conditions can fall, with the number of configurations that fall so.

    A parameter branches into its distinct values and one branch, in which it is not listed, for all its others: an
    integer range of thousands costs as much as the few values that conditions mention.
    """
    branches: list[tuple[dict[str, Scalar], int]] = [({}, 1)]
    for name in drawing_order(parameters.values()):
        parameter, grown = parameters[name], []
        for params, weight in branches:
            index = parameter.chosen(params)
            if index is None:
                grown.append((params, weight))
                continue
            distribution = parameter.alternatives[index].distribution
            values = distribution.values or ()
            named = [value for value in sorted(distinct.get(name, ()), key=str) if value in values]
            grown += [(params | {name: value}, weight) for value in named]
            others = (distribution.size or 1) - len(named)
            if others:
                grown.append((params, weight * others))
        branches = grown
    yield from branches


def _mentioned_values(parameters: Mapping[str, Parameter]) -> dict[str, set[Scalar]]:
    """The values of each parameter that some condition asks for."""
    mentioned: dict[str, set[Scalar]] = {}
    for parameter in parameters.values():
        for alternative in parameter.alternatives:
            for other, values in alternative.when:
                mentioned.setdefault(other, set()).update(values)
    return mentioned


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
            continue
        if needed:
            missing = " ".join(f"--set {other}=..." for other in dict.fromkeys(needed))
            faults[name] = f"`{name}` must come with what decides whether a trial has it: add {missing}."
            continue
        spec = method_spec(space.methods)
        if name != METHOD:  # where methods differ in the law, the trial's method decides
            takers = parameter.methods or space.methods
            method = str(known.get(METHOD, takers[0]))
            spec = parameter_specs(space.method(method if method in takers else takers[0]))[name]
        is_digits = isinstance(value, str) and value.strip("+-").isdecimal()
        law, own = "", None
        try:
            checked = spec.check(int(value) if is_digits and spec.kind == "int" else value)
        except ValueError as error:
            law = str(error)
        else:
            if index is None:
                others = {other: known.get(other, "left out") for other in parameter.parents()}
                law = f"must be left out of a trial with {', '.join(f'{key} {it}' for key, it in others.items())}"
            else:
                distribution = parameter.alternatives[index].distribution
                own, law = distribution.find(checked, spec.same), f"must be as the space has it, {distribution}"
        if own is None:
            faults[name] = f"`{name}` {law}, but got {shown(value)}."
        else:
            known[name] = placed[name] = own
    for name in given:
        if name not in space.parameters:
            first, listed = did_you_mean(name, space.parameters), one_of(space.parameters, name)
            faults[name] = f"{first}`{name}` must be a parameter of the space: {listed}."
    return placed, list(faults.values())


# ---- what a space amounts to on a base model, for `check`, before any training ----
def notes(space: Space) -> tuple[str, ...]:
    """Return what methods ask for, which of them cannot share passes, and what may not be what was meant."""
    found = [f"method {name} {text}" for name in space.methods if (text := space.method(name).advice)]
    anew = [name for name in space.methods if not space.method(name).can_start]
    if space.start_from is not None and anew:
        found.append(f"trials of {both(anew)} do not start from {space.start_from}: they cannot start from an adapter")
    unpacked = space.unpackable_methods if space.is_packable and space.search.pack_size != 1 else ()
    if unpacked:
        named = f"method {unpacked[0]}" if len(unpacked) == 1 else f"methods {both(unpacked)}"
        found.append(f"trials of {named} cannot share passes: each trains unpacked, beside the packs of the others")
    sampler = SAMPLERS.get(space.search.sampler)(space.search, space.searched())
    return (*found, *sampler.advice())


@dataclass(frozen=True)
class _GroupDescription:
    """A module group expression and the full names it resolves to, in model order."""

    expression: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class ShapeDescription:
    """An adapter of the space, and what would be stored.

    Args:
        params: The method's own parameters that decide what is stored, of those that the space names: the rank of
            LoRA-XS.
        head: `full` or `output`.
        method: That is trained.
    """

    params: Mapping[str, Scalar]
    target_modules: str
    head: str
    size: AdapterSize
    method: str = LoraXS.name


_STORED: Callable[[ShapeDescription], int] = attrgetter("size.stored_bytes")


@dataclass(frozen=True)
class _Extremes:
    """The adapter with the fewest bytes that a trial of one method may have, and the one with the most."""

    smallest: ShapeDescription
    largest: ShapeDescription


@dataclass(frozen=True)
class SpaceDescription:
    """A space's size.

    Args:
        combinations: How many different params there are; None when a parameter is continuous.
        groups: Every module group that a trial may have.
        smallest: The adapter with the fewest bytes that a trial may have.
        largest: The one with the most.
        methods: The same for the trials of each method, by its name.
        notes: Remarks for users.
    """

    combinations: int | None
    groups: tuple[_GroupDescription, ...]
    smallest: ShapeDescription
    largest: ShapeDescription
    methods: Mapping[str, _Extremes]
    notes: tuple[str, ...] = ()


def describe(
    space: Space,
    modules: Sequence[LinearModule],
    *,
    heads: Mapping[str, Shapes] = MappingProxyType({}),
    body: Shapes = MappingProxyType({}),
) -> SpaceDescription:
    """Return what a space amounts to on a base model with these linear layers.

    Stored bytes are those of the adapter's file, names and shapes included.

    Args:
        heads: `full` and `output` to full name and shape of the head's parameters that are trained.
        body: Full name and shape of the base's parameters below its head.
    Raises:
        UsageError: a module group matches nothing, a rank is above the smaller side of one of its modules, or no
            adapter that may be promoted is as small as `promotion.max_bytes` asks.
    """
    found = (space.possible_values(name, "target_modules") for name in space.methods)
    expressions = dict.fromkeys(str(value) for values in found for value in values or ())
    groups = {expression: resolve_modules(expression, modules) for expression in expressions}
    by_name, methods = {module.name: module for module in modules}, dict[str, _Extremes]()
    for method in map(space.method, space.methods):  # each way to adapt layers that a trial may draw must fit them
        for own, names in trial_shapes(space, method, modules):
            method.check(own, [by_name[name] for name in names])
    for method in map(space.method, space.methods):
        shapes = list[ShapeDescription]()
        for params in space.reachable(method, (*method.sized_by, "target_modules", "head")):
            own = {name: params[name] for name in method.sized_by if name in params}
            expression, head = str(params["target_modules"]), str(params["head"])
            adapted, stored = [by_name[name] for name in groups[expression]], heads.get(head, {})
            identity = {name: shape for name, shape in heads.get("full", {}).items() if name not in stored}
            size = method.size(method.with_defaults(own), adapted, stored, identity, body)
            named = {name: value for name, value in own.items() if name in space.parameters}
            shapes.append(ShapeDescription(named, expression, head, size, method.name))
        methods[method.name] = _Extremes(min(shapes, key=_STORED), max(shapes, key=_STORED))
    remarks, limit = notes(space), space.promotion.max_bytes
    candidates = [each for name, each in methods.items() if space.may_be_candidate(name)]
    if limit is not None and candidates:
        smallest = min(each.smallest.size.stored_bytes for each in candidates)
        largest = max(each.largest.size.stored_bytes for each in candidates)
        if smallest > limit:
            law = f"must leave room for an adapter of this space, of which the smallest takes {smallest:,} bytes"
            fail_with(
                space.source,
                [f"{space.source}: promotion.max_bytes: {law}, but got {limit:,}."],
                hint="raise promotion.max_bytes, or search smaller ranks or fewer modules",
            )
        if largest > limit:
            law = f"trials whose adapters take more than max_bytes={limit:,} are never promoted"
            remarks = (*remarks, f"{law}; the largest: {largest:,}")
    return SpaceDescription(
        combinations=space.grid_size(),
        groups=tuple(_GroupDescription(expression, names) for expression, names in groups.items()),
        smallest=min((each.smallest for each in methods.values()), key=_STORED),
        largest=max((each.largest for each in methods.values()), key=_STORED),
        methods=methods,
        notes=remarks,
    )


def trial_shapes(
    space: Space, method: Method, modules: Sequence[LinearModule]
) -> Iterator[tuple[Mapping[str, Scalar], tuple[str, ...]]]:
    """Yield a method's own words, flags and integers that a trial may have together, and the layers that it adapts.

    Of more than 64 integers only the ends. The others of its parameters have their defaults.
    """
    decisive = [name for name, spec in method.parameters.items() if spec.kind != "float"]
    resolved = functools.cache(lambda expression: resolve_modules(expression, modules))
    for params in space.reachable(method, (*decisive, "target_modules"), ends=False):
        own = method.with_defaults({name: params[name] for name in decisive if name in params})
        yield own, resolved(str(params["target_modules"]))
