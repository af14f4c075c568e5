"""What a space amounts to on a given base model, and what is worth saying of it: for `check`, before any training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType

from loraxs_search.methods._base import Method
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.names import Shapes
from loraxs_search.records.base import LinearModule
from loraxs_search.records.literals import Scalar
from loraxs_search.records.trial import AdapterSize
from loraxs_search.samplers import make_sampler
from loraxs_search.search_space.distributions import reachable_shapes
from loraxs_search.search_space.document import fail_with
from loraxs_search.search_space.parameter_specs import DEFAULT_TARGET_MODULES, both, parameter_specs, resolve_modules
from loraxs_search.search_space.space import Space


def notes(space: Space) -> tuple[str, ...]:
    """Return what methods ask for, which of them cannot share passes, and what may not be what was meant."""
    found = [f"method {name} {text}" for name in space.methods if (text := space.method(name).advice)]
    anew = [name for name in space.methods if not space.method(name).can_start]
    if space.start_from is not None and anew:
        found.append(f"trials of {both(anew)} do not start from {space.start_from}: they cannot start from an adapter")
    parts = {
        "trials": space.unpackable_methods,
        "some trials": [name for name in space.methods if len(set(space.can_pack(space.method(name)))) == 2],
    }
    for which, methods in parts.items() if space.is_packable and space.search.pack_size != 1 else ():
        if methods:
            named = f"method {methods[0]}" if len(methods) == 1 else f"methods {both(methods)}"
            found.append(f"{which} of {named} cannot share passes: each trains alone, beside the packs of the others")
    return (*found, *make_sampler(space.search, space.searched()).advice())


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
    groups: tuple[GroupDescription, ...]
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
        TargetModulesError: a module group matches nothing.
        RankError: a rank that a trial may have is above the smaller side of one of its modules.
        SpaceError: no adapter that may be promoted is as small as `promotion.max_bytes` asks.
    """
    found = (space.possible_values(name, "target_modules", DEFAULT_TARGET_MODULES) for name in space.methods)
    expressions = dict.fromkeys(str(value) for values in found for value in values or ())
    groups = {expression: resolve_modules(expression, modules) for expression in expressions}
    by_name, methods = {module.name: module for module in modules}, dict[str, _Extremes]()
    for method in map(space.method, space.methods):  # each way to adapt layers that a trial may draw must fit them
        for own, names in trial_shapes(space, method, modules):
            method.check(own, [by_name[name] for name in names])
    for method in map(space.method, space.methods):
        specs, shapes = parameter_specs(method), list[ShapeDescription]()
        defaults = {name: specs[name].default for name in (*method.sized_by, "target_modules", "head")}
        for params in reachable_shapes(space.parameters_of(method.name), defaults):
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
        groups=tuple(GroupDescription(expression, names) for expression, names in groups.items()),
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
    specs = parameter_specs(method)
    decisive = [name for name, spec in method.parameters.items() if spec.kind != "float"]
    defaults = {name: specs[name].default for name in (*decisive, "target_modules")}
    resolved = functools.cache(lambda expression: resolve_modules(expression, modules))
    for params in reachable_shapes(space.parameters_of(method.name), defaults, ends=False):
        own = method.with_defaults({name: params[name] for name in decisive if name in params})
        yield own, resolved(str(params["target_modules"]))
