"""Whether a trial of a space could have some params."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from loraxs_search.methods import ParameterSpec
from loraxs_search.records import Scalar
from loraxs_search.search_space._conditions import drawing_order
from loraxs_search.search_space._distributions import METHOD
from loraxs_search.search_space._parameter_specs import parameter_specs
from loraxs_search.search_space._space import Space


@dataclass(frozen=True)
class Placed:
    """Params as this space has them, or why it has no such trial.

    Args:
        faults: What lies outside of it; none where a trial of the space could have the params.
        outside: The parameters that the faults are about, in their order.
    """

    params: Mapping[str, Scalar]
    faults: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


def place_params(space: Space, params: Mapping[str, Scalar]) -> Placed:
    """Find the params of this space that mean these; what they leave out is at its default.

    Args:
        params: Those of a trial, one of the space's methods among them; texts may stand for numbers, and names that are
            no parameters of its method are passed over.
    """
    method = str(params[METHOD])
    own = space.defaults.get(method, {})
    specs = {name: replace(spec, default=own.get(name, spec.default)) for name, spec in parameter_specs(method).items()}
    values = {name: as_number(specs[name], value) for name, value in params.items() if name in specs}
    wanted = {name: spec.default for name, spec in specs.items()} | values
    wanted.setdefault("head_learning_rate", None)
    if wanted["head_learning_rate"] is None:
        wanted["head_learning_rate"] = wanted["learning_rate"]
    placed: dict[str, Scalar] = {METHOD: method}
    faults = {
        name: fault for name in _order(space, specs) if (fault := _place(space, specs[name], name, wanted, placed))
    }
    params = {name: placed[name] for name in space.parameters if name in placed}
    return Placed(params, tuple(faults.values()), tuple(faults))


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


def as_number(spec: ParameterSpec, value: Scalar) -> Scalar:
    """Return a text as the number that it stands for, where the parameter is one."""
    if not isinstance(value, str) or spec.kind not in ("int", "float") or "_" in value:
        return value  # Python reads 1_6 as 16
    try:
        return int(value) if spec.kind == "int" else float(value)
    except ValueError:
        return value
