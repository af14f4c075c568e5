"""The parameters that a space may search: those of every method, and those of the space's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

from loraxs_search.methods import METHODS, ParameterSpec, get_method
from loraxs_search.records import Head, Hyperparameters, LrSchedule, Scalar
from loraxs_search.search_space._distributions import METHOD
from loraxs_search.search_space._entries import known_entry
from loraxs_search.search_space._faults import must_be, one_of
from loraxs_search.search_space._modules import GROUPS, parse_expression

DEFAULT_TARGET_MODULES = "all-linear"


class ModulesSpec(ParameterSpec):
    """The law of `target_modules`: a module group expression."""

    def __str__(self) -> str:
        return f"a module group ({one_of(GROUPS)}, or module names joined by +; @last-K for the last K layers)"

    def check(self, value: object) -> Scalar:
        """Return the expression in its one spelling.

        Raises:
            ValueError: it cannot be read; the message states the law.
        """
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            value = "+".join(value)
        if not isinstance(value, str):
            raise ValueError(f"must be {self}")
        return str(parse_expression(value))

    def same(self, one: Scalar, other: Scalar) -> bool:
        """Whether two checked values mean the same: `query+value` is `value+query`."""
        left, right = parse_expression(str(one)), parse_expression(str(other))
        return (set(left.groups), left.last) == (set(right.groups), right.last)


# `head_learning_rate` has none: it is the trial's `learning_rate` where it is left out.
COMMON: Mapping[str, ParameterSpec] = {
    "target_modules": ModulesSpec("modules", default=DEFAULT_TARGET_MODULES),
    "head": ParameterSpec("name", names=get_args(Head), default=Hyperparameters.head),
    "learning_rate": ParameterSpec("float", above=True),
    "head_learning_rate": ParameterSpec("float", above=True),
    "weight_decay": ParameterSpec("float", default=Hyperparameters.weight_decay),
    "adam_beta1": ParameterSpec("float", high=1.0, below=True, default=Hyperparameters.adam_beta1),
    "adam_beta2": ParameterSpec("float", high=1.0, below=True, default=Hyperparameters.adam_beta2),
    "lr_schedule": ParameterSpec("name", names=get_args(LrSchedule), default=Hyperparameters.lr_schedule),
    "warmup_ratio": ParameterSpec("float", high=1.0, default=Hyperparameters.warmup_ratio),
    "max_grad_norm": ParameterSpec("float", default=Hyperparameters.max_grad_norm),
    "batch_size": ParameterSpec("int", low=1, high=65536, default=Hyperparameters.batch_size),
}


def parameter_specs(method: str) -> dict[str, ParameterSpec]:
    """Return every parameter that trials of this method may have, the method's own first."""
    return {**get_method(method).parameters, **COMMON}


def required(specs: Mapping[str, ParameterSpec]) -> tuple[str, ...]:
    """Return the parameters that a trial must have."""
    return tuple(name for name, spec in specs.items() if spec.default is None and name != "head_learning_rate")


def defaults_of(method: str) -> dict[str, Scalar]:
    """Return what each parameter is that a trial of this method leaves out, where it may."""
    specs = parameter_specs(method)
    return {name: spec.default for name, spec in specs.items() if spec.default is not None}


class MethodSpec(ParameterSpec):
    """The law of `method`: a registered one that can be imported."""

    def check(self, value: object) -> Scalar:
        return known_entry(METHODS, "a method")(value)


def method_spec() -> MethodSpec:
    """Return the law of `method`, with the methods that are known by now."""
    return MethodSpec("name", names=tuple(METHODS.names()))


class SpaceSpecs:
    """What the parameters of a space must be; each method of the space has laws of its own.

    Args:
        methods: The registered methods that the space's trials may train.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self.methods = tuple(methods)
        self._specs = {method: parameter_specs(method) for method in methods}

    def names(self) -> list[str]:
        """Return every parameter that some of the methods take."""
        return list(dict.fromkeys(name for specs in self._specs.values() for name in specs))

    def takers(self, name: str) -> tuple[str, ...]:
        """Return the methods that take a parameter."""
        return tuple(method for method, specs in self._specs.items() if name in specs)

    def laws(self, name: str, methods: Sequence[str]) -> list[ParameterSpec]:
        """Return the different laws that a parameter has in these methods, which take it."""
        return list(dict.fromkeys(self._specs[method][name] for method in methods))

    def required(self) -> dict[str, tuple[str, ...]]:
        """Return the parameters that trials must have, each with the methods that need it."""
        needs = {method: required(specs) for method, specs in self._specs.items()}
        names = dict.fromkeys(name for needed in needs.values() for name in needed)
        return {name: tuple(method for method, needed in needs.items() if name in needed) for name in names}

    def unknown(self, name: str) -> str:
        """Say that no method of the space has a parameter of this name, and whose it is."""
        for method in self.methods:
            if name in (not_offered := get_method(method).not_offered):
                return not_offered[name]
        if name == METHOD:
            return "must stand at the top of the file, beside `parameters`: `method: {choice: [...]}`."
        owners = [other for other, entry in METHODS.importable().items() if name in entry.parameters]
        lacking = f"{both(self.methods)} {'does' if len(self.methods) == 1 else 'do'} not"
        belongs = f", which method {one_of(owners)} takes and {lacking}" if owners else ""
        return f"{must_be(name, self.names())}, but got {name!r}{belongs}."


def joint_law(laws: Sequence[ParameterSpec]) -> ParameterSpec | None:
    """Return the law of a value that obeys all of these; None where no value could."""
    first = laws[0]
    if len({replace(law, default=None) for law in laws}) == 1:
        return first
    if any(type(law) is not ParameterSpec or law.kind != first.kind for law in laws):
        return None
    low, high = max(law.low for law in laws), min(law.high for law in laws)
    names = tuple(name for name in first.names if all(name in law.names for law in laws))
    above = any(law.above and law.low == low for law in laws)
    below = any(law.below and law.high == high for law in laws)
    if (first.kind == "name" and not names) or low > high:
        return None
    return ParameterSpec(first.kind, low=low, above=above, high=high, below=below, names=names)


def both(names: Sequence[str]) -> str:
    """Return names as a sentence has them: `a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
