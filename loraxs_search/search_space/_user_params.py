"""Params that a user gives: whether a trial of the space could have them, and what a clone may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from loraxs_search.errors import did_you_mean, one_of, unknown_name
from loraxs_search.methods import ParameterSpec
from loraxs_search.records import Scalar
from loraxs_search.search_space._distributions import METHOD, Constant, Parameter, drawing_order
from loraxs_search.search_space._document import shown
from loraxs_search.search_space._parameter_specs import COMMON, SpaceSpecs, method_spec, parameter_specs
from loraxs_search.search_space._space import Space


@dataclass(frozen=True)
class _Placed:
    """Params as this space has them, or why it has no such trial.

    Args:
        faults: What lies outside of it; none if a trial of the space could have the params.
        outside: The parameters that the faults are about, in their order.
    """

    params: Mapping[str, Scalar]
    faults: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


def _place_params(space: Space, params: Mapping[str, Scalar]) -> _Placed:
    """Find the params of this space that mean these; what they leave out is at its default.

    Args:
        params: Those of a trial, one of the space's methods among them; texts may stand for numbers, and names that are
            no parameters of its method are passed over.
    """
    method = str(params[METHOD])
    own = space.defaults.get(method, {})
    specs = {name: replace(spec, default=own.get(name, spec.default)) for name, spec in parameter_specs(method).items()}
    values = {name: _as_number(specs[name], value) for name, value in params.items() if name in specs}
    wanted = {name: spec.default for name, spec in specs.items()} | values
    wanted.setdefault("head_learning_rate", None)
    if wanted["head_learning_rate"] is None:
        wanted["head_learning_rate"] = wanted["learning_rate"]
    placed: dict[str, Scalar] = {METHOD: method}
    faults = {
        name: fault for name in _order(space, specs) if (fault := _place(space, specs[name], name, wanted, placed))
    }
    params = {name: placed[name] for name in space.parameters if name in placed}
    return _Placed(params, tuple(faults.values()), tuple(faults))


def _order(space: Space, specs: Mapping[str, ParameterSpec]) -> list[str]:
    """Return all parameters of a method: those that the space draws in their order, then those it leaves out."""
    drawn = [name for name in drawing_order(space.parameters.values()) if name in specs]
    return [*drawn, *(name for name in specs if name not in drawn)]


def _place(
    space: Space,
    spec: ParameterSpec,
    name: str,
    wanted: Mapping[str, Scalar | None],
    placed: dict[str, Scalar],
) -> str | None:
    """Put one parameter to those placed before it; a text says why that cannot be."""
    parameter, value = space.parameters.get(name), wanted[name]
    index = None if parameter is None else parameter.chosen(placed)
    if parameter is None or index is None:
        otherwise = None if parameter is None else parameter.otherwise_after(placed)
        if otherwise is not None:
            placed[name] = otherwise
        default = placed.get("learning_rate") if name == "head_learning_rate" else spec.default
        expected = default if otherwise is None else otherwise
        return None if _same(spec, value, expected) else f"{name} is {value}, and here {expected}"
    distribution = parameter.alternatives[index].distribution
    own_value = None if value is None else distribution.find(value, spec.same)
    if own_value is None:
        placed[name] = "" if value is None else value
        return f"{name} is {value}, and here {distribution}"
    placed[name] = own_value
    return None


def _same(spec: ParameterSpec, one: Scalar | None, other: Scalar | None) -> bool:
    return one == other or (one is not None and other is not None and spec.same(one, other))


def _as_number(spec: ParameterSpec, value: Scalar) -> Scalar:
    """Return a text as the number that it stands for, where the parameter is one."""
    if not isinstance(value, str) or spec.kind not in ("int", "float") or "_" in value:
        return value  # Python reads 1_6 as 16
    try:
        return int(value) if spec.kind == "int" else float(value)
    except ValueError:
        return value


# What decides how a trial is trained, and not what it is: hosts can train with any values of these.
OPTIMIZER = tuple(name for name in COMMON if name not in ("target_modules", "head"))


def place_given(space: Space, given: Mapping[str, Scalar]) -> _Placed:
    """Check some of the params of a trial, whose others the sampler will choose.

    What hangs on a condition needs the parameters that decide it to be given too: the sampler might choose others.
    """
    reader = _ParamsReader(space, given)
    for name in drawing_order(space.parameters.values()):
        reader.place(space.parameters[name])
    for name in given:
        if name not in space.parameters:
            first, known = did_you_mean(name, space.parameters), one_of(space.parameters, name)
            reader.faults[name] = f"{first}`{name}` must be a parameter of the space: {known}."
    return _Placed(reader.given, tuple(reader.faults.values()), tuple(reader.faults))


def clone_params(space: Space, source: Mapping[str, Scalar], given: Mapping[str, Scalar], *, force: bool) -> _Placed:
    """Return the params of a clone: those of its source but for those given.

    Args:
        force: Whether what concerns the optimizer alone may lie outside of the space.
    Returns:
        The params, and what keeps a clone from having them. Without faults, `outside` has what was forced.
    """
    method = str(given.get(METHOD, source.get(METHOD, space.methods[0])))
    faults = _unknown(space, method, given)
    if faults:
        return _Placed({}, tuple(faults.values()), tuple(faults))
    specs = parameter_specs(method)
    changed = {name: _checked(specs[name], name, value, faults) for name, value in given.items() if name != METHOD}
    wanted = {**source, METHOD: method, **{name: value for name, value in changed.items() if value is not None}}
    if faults:
        return _Placed({}, tuple(faults.values()), tuple(faults))
    placed = _place_params(space, wanted)
    if force and set(placed.outside) <= set(OPTIMIZER):
        forced = {name: wanted[name] for name in placed.outside if name in wanted}
        return _Placed({**placed.params, **forced}, (), placed.outside)
    laws = [
        f"`{name}` must be as the space has it: {fault}."
        for name, fault in zip(placed.outside, placed.faults, strict=True)
    ]
    return _Placed(placed.params, tuple(laws), placed.outside)


class _ParamsReader:
    """Walks through the parameters of a space in the order in which they are drawn."""

    def __init__(self, space: Space, given: Mapping[str, Scalar]) -> None:
        self._space, self._wanted = space, given
        self._specs = SpaceSpecs(space.methods)
        self._open: set[str] = set()  # left to the sampler
        self._known: dict[str, Scalar] = {}
        self.given: dict[str, Scalar] = {}
        self.faults: dict[str, str] = {}

    def place(self, parameter: Parameter) -> None:
        name = parameter.name
        undecided = [other for other in parameter.parents() if other in self._open]
        if name not in self._wanted:
            self._leave(parameter, undecided)
        elif undecided:
            needed = " ".join(f"--set {other}=..." for other in dict.fromkeys(undecided))
            self.faults[name] = f"`{name}` must come with what decides whether a trial has it: add {needed}."
        else:
            self._take(parameter, self._wanted[name])

    def _leave(self, parameter: Parameter, undecided: list[str]) -> None:
        index = parameter.chosen(self._known)
        otherwise = parameter.otherwise_after(self._known)
        if undecided:
            self._open.add(parameter.name)
        elif index is None:
            self._known |= {} if otherwise is None else {parameter.name: otherwise}
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
            otherwise = parameter.otherwise_after(self._known)
            if otherwise is not None and self._law(name).same(value, otherwise):
                self._known[name] = otherwise
                return
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
            return method_spec()
        takers = self._specs.takers(name)
        method = str(self._known.get(METHOD, takers[0]))
        return parameter_specs(method if method in takers else takers[0])[name]


def _unknown(space: Space, method: str, given: Mapping[str, Scalar]) -> dict[str, str]:
    """Return what is wrong with the names that are given."""
    if method not in space.methods:
        return {METHOD: unknown_name("method", method, space.methods)}
    known = [*([METHOD] if len(space.methods) > 1 else []), *parameter_specs(method)]
    return {
        name: f"{did_you_mean(name, known)}`{name}` must be a parameter of a trial: {one_of(known, name)}."
        for name in given
        if name not in known
    }


def _checked(spec: ParameterSpec, name: str, value: Scalar, faults: dict[str, str]) -> Scalar | None:
    """Return a value in the parameter's own type; None if it breaks the law, which goes to the faults."""
    try:
        return spec.check(_as_number(spec, value))
    except ValueError as error:
        faults[name] = f"`{name}` {error}, but got {shown(value)}."
        return None
