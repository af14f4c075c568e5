"""Params that a user gives: whether a trial of the space could have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraxs_search.errors import did_you_mean, one_of
from loraxs_search.records.literals import Scalar
from loraxs_search.search_space.distributions import METHOD, Parameter, drawing_order
from loraxs_search.search_space.document import shown
from loraxs_search.search_space.parameter_specs import method_spec, parameter_specs
from loraxs_search.search_space.space import Space


@dataclass(frozen=True)
class _Placed:
    """Params as this space has them, or why it has no such trial.

    Args:
        faults: What lies outside of it; none if a trial of the space could have the params.
    """

    params: Mapping[str, Scalar]
    faults: tuple[str, ...] = ()


def place_given(space: Space, given: Mapping[str, Scalar], source: Mapping[str, Scalar] | None = None) -> _Placed:
    """Check some of the params of a trial, whose others are those of another trial, or left to the sampler.

    What hangs on a condition needs the parameters that decide it to be given too: the sampler might choose others.

    Args:
        source: Params of the other trial; those that a trial with the given ones does not have are left behind.
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
    return _Placed(placed, tuple(faults.values()))


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
