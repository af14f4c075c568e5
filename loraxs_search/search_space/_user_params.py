"""Params that a user gives: whether a trial of the space could have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraxs_search.errors import did_you_mean, one_of
from loraxs_search.methods import ParameterSpec
from loraxs_search.records import Scalar
from loraxs_search.search_space._distributions import METHOD, Constant, Parameter, drawing_order
from loraxs_search.search_space._document import shown
from loraxs_search.search_space._parameter_specs import SpaceSpecs, method_spec, parameter_specs
from loraxs_search.search_space._space import Space


@dataclass(frozen=True)
class _Placed:
    """Params as this space has them, or why it has no such trial.

    Args:
        faults: What lies outside of it; none if a trial of the space could have the params.
    """

    params: Mapping[str, Scalar]
    faults: tuple[str, ...] = ()


def _as_number(spec: ParameterSpec, value: Scalar) -> Scalar:
    """Return a text as the number that it stands for, where the parameter is one."""
    if not isinstance(value, str) or spec.kind not in ("int", "float") or "_" in value:
        return value  # Python reads 1_6 as 16
    try:
        return int(value) if spec.kind == "int" else float(value)
    except ValueError:
        return value


def place_given(space: Space, given: Mapping[str, Scalar], source: Mapping[str, Scalar] | None = None) -> _Placed:
    """Check some of the params of a trial, whose others are those of another trial, or left to the sampler.

    What hangs on a condition needs the parameters that decide it to be given too: the sampler might choose others.

    Args:
        source: Params of the other trial; those that a trial with the given ones does not have are left behind.
    """
    reader = _ParamsReader(space, given, source or {})
    for name in drawing_order(space.parameters.values()):
        reader.place(space.parameters[name])
    for name in given:
        if name not in space.parameters:
            first, known = did_you_mean(name, space.parameters), one_of(space.parameters, name)
            reader.faults[name] = f"{first}`{name}` must be a parameter of the space: {known}."
    return _Placed(reader.given, tuple(reader.faults.values()))


class _ParamsReader:
    """Walks through the parameters of a space in the order in which they are drawn."""

    def __init__(self, space: Space, given: Mapping[str, Scalar], source: Mapping[str, Scalar]) -> None:
        self._space, self._wanted, self._source = space, given, source
        self._specs = SpaceSpecs([space.method(name) for name in space.methods])
        self._open: set[str] = set()  # left to the sampler
        self._known: dict[str, Scalar] = {}
        self.given: dict[str, Scalar] = {}
        self.faults: dict[str, str] = {}

    def place(self, parameter: Parameter) -> None:
        name = parameter.name
        undecided = [other for other in parameter.parents() if other in self._open]
        value = self._wanted.get(name, self._source.get(name))
        if value is None or (name not in self._wanted and parameter.chosen(self._known) is None):
            self._leave(parameter, undecided)
        elif undecided:
            needed = " ".join(f"--set {other}=..." for other in dict.fromkeys(undecided))
            self.faults[name] = f"`{name}` must come with what decides whether a trial has it: add {needed}."
        else:
            self._take(parameter, value)

    def _leave(self, parameter: Parameter, undecided: list[str]) -> None:
        index = parameter.chosen(self._known)
        if undecided:
            self._open.add(parameter.name)
        elif index is None:
            return
        elif isinstance(constant := parameter.alternatives[index].distribution, Constant):
            self._known[parameter.name] = constant.value
        else:
            self._open.add(parameter.name)

    def _take(self, parameter: Parameter, given: Scalar) -> None:
        name = parameter.name
        index = parameter.chosen(self._known)
        value = _checked(self._law(name), name, given, self.faults)
        if value is None:
            return
        if index is None:
            parents = dict.fromkeys(parameter.parents())
            given_here = ", ".join(f"{other} {self._known.get(other, 'left out')}" for other in parents)
            self.faults[name] = f"`{name}` must be left out of a trial with {given_here}, but got {shown(given)}."
            return
        distribution = parameter.alternatives[index].distribution
        own = distribution.find(value, self._law(name).same)
        if own is None:
            self.faults[name] = f"`{name}` must be as the space has it, {distribution}, but got {shown(given)}."
            return
        self._known[name] = self.given[name] = own

    def _law(self, name: str) -> ParameterSpec:
        """Return what a value of a parameter must be; where methods differ in it, by the trial's."""
        if name == METHOD:
            return method_spec(self._space.methods)
        takers = self._specs.takers(name)
        method = str(self._known.get(METHOD, takers[0]))
        return parameter_specs(self._space.method(method if method in takers else takers[0]))[name]


def _checked(spec: ParameterSpec, name: str, value: Scalar, faults: dict[str, str]) -> Scalar | None:
    """Return a value in the parameter's own type; None if it breaks the law, which goes to the faults."""
    try:
        return spec.check(_as_number(spec, value))
    except ValueError as error:
        faults[name] = f"`{name}` {error}, but got {shown(value)}."
        return None
