"""The parameters that a space may search: those of every method, and those of the space's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from loraxs_search.methods import METHODS, ParameterSpec, get_method
from loraxs_search.records import Head, Hyperparameters, LrSchedule, Scalar
from loraxs_search.search_space._faults import one_of
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
    """Return every parameter that a space of this method may have, the method's own first."""
    return {**get_method(method).parameters, **COMMON}


def required(specs: Mapping[str, ParameterSpec]) -> tuple[str, ...]:
    """Return the parameters that a space must have."""
    return tuple(name for name, spec in specs.items() if spec.default is None and name != "head_learning_rate")


def unknown_parameter(method: str, name: str) -> str:
    """Say that a space of this method has no parameter of this name, and whose it is."""
    taken_out = get_method(method).not_offered.get(name)
    if taken_out is not None:
        return taken_out
    owners = [other for other, entry in METHODS.importable().items() if name in entry.parameters]
    belongs = f", which method {one_of(owners)} takes and {method} does not" if owners else ""
    return f"must be one of: {one_of(parameter_specs(method), name)}, but got {name!r}{belongs}."
