"""What a space amounts to on a given base model: for `check`, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from loraxs_search.methods import Shapes, get_method
from loraxs_search.records import AdapterSize, LinearModule, Scalar
from loraxs_search.search_space._counting import reachable_shapes
from loraxs_search.search_space._modules import resolve_modules
from loraxs_search.search_space._parameter_specs import parameter_specs
from loraxs_search.search_space._space import Space

_MODULES = "target_modules"


@dataclass(frozen=True)
class GroupDescription:
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
    """

    params: Mapping[str, Scalar]
    target_modules: str
    head: str
    size: AdapterSize


@dataclass(frozen=True)
class SpaceDescription:
    """A space's size.

    Args:
        combinations: How many different params there are; None when a parameter is continuous.
        groups: Every module group that a trial may have.
        smallest: The adapter with the fewest bytes that a trial may have.
        largest: The one with the most.
        remarks: What the method says of adapters that a trial may have.
    """

    combinations: int | None
    groups: tuple[GroupDescription, ...]
    smallest: ShapeDescription
    largest: ShapeDescription
    remarks: tuple[str, ...] = ()


def describe(
    space: Space, modules: Sequence[LinearModule], *, heads: Mapping[str, Shapes] = MappingProxyType({})
) -> SpaceDescription:
    """Return what a space amounts to on a base model with these linear layers.

    Stored bytes are those of the adapter's file, names and shapes included.

    Args:
        heads: `full` and `output` to full name and shape of the head's parameters that are trained.
    Raises:
        TargetModulesError: a module group matches nothing.
        RankError: a rank that a trial may have is above the smaller side of one of its modules.
    """
    method, specs = get_method(space.method), parameter_specs(space.method)
    groups = {expression: resolve_modules(expression, modules) for expression in space.target_groups()}
    by_name = {module.name: module for module in modules}
    decisive = (*method.sized_by, "target_modules", "head")
    shapes, remarks = [], list[str]()
    for params in reachable_shapes(space.parameters, {name: specs[name].default for name in decisive}):
        own = {name: params[name] for name in method.sized_by}
        expression, head = str(params["target_modules"]), str(params["head"])
        adapted = [by_name[name] for name in groups[expression]]
        method.check(method.with_defaults(own), adapted)
        stored = heads.get(head, {})
        identity = {name: shape for name, shape in heads.get("full", {}).items() if name not in stored}
        remarks.append(method.remark(method.with_defaults(own)))
        size = method.size(method.with_defaults(own), adapted, stored, identity)
        named = {name: value for name, value in own.items() if name in space.parameters}
        shapes.append(ShapeDescription(named, expression, head, size))
    return SpaceDescription(
        combinations=space.grid_size(),
        groups=tuple(GroupDescription(expression, names) for expression, names in groups.items()),
        smallest=min(shapes, key=lambda shape: shape.size.stored_bytes),
        largest=max(shapes, key=lambda shape: shape.size.stored_bytes),
        remarks=tuple(dict.fromkeys(filter(None, remarks))),
    )


def trial_shapes(
    space: Space, modules: Sequence[LinearModule]
) -> Iterator[tuple[Mapping[str, Scalar], tuple[str, ...]]]:
    """Yield the method's own words and integers that a trial may have together, and the layers that it then adapts.

    Of a range of integers only the ends. The others of its parameters have their defaults.
    """
    method, specs = get_method(space.method), parameter_specs(space.method)
    decisive = [name for name, spec in method.parameters.items() if spec.kind != "float"]
    for params in reachable_shapes(space.parameters, {name: specs[name].default for name in (*decisive, _MODULES)}):
        own = method.with_defaults({name: params[name] for name in decisive if name in params})
        yield own, resolve_modules(str(params[_MODULES]), modules)
