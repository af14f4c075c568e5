"""`when:` — a parameter that is present only if others have certain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from loraxs_search.methods import ParameterSpec
from loraxs_search.records import Scalar
from loraxs_search.search_space._distributions import Parameter
from loraxs_search.search_space._document import Document
from loraxs_search.search_space._faults import KeyPath, one_of, shown


def check_conditions(
    document: Document, section: Mapping[str, Any], parameters: dict[str, Parameter], specs: Mapping[str, ParameterSpec]
) -> None:
    """Add each declared condition to its parameter; faults go to the document."""
    for name, declared in section.items():
        if isinstance(declared, dict) and "when" in declared and name in specs:
            path: KeyPath = ("parameters", name, "when")
            when = _read_when(document, path, declared["when"], section, parameters, specs)
            if name in parameters:
                parameters[name] = replace(parameters[name], when=when)
    try:
        drawing_order(parameters.values())
    except CycleError as error:
        circle: list[str] = error.args[1]
        path = ("parameters", circle[-1], "when")
        document.faults.add(path, f"must not lead back to itself, but got {' -> '.join(reversed(circle))}.")


def add_implied_conditions(
    document: Document,
    parameters: dict[str, Parameter],
    specs: Mapping[str, ParameterSpec],
    only_with: Mapping[str, Mapping[str, Sequence[Scalar]]],
) -> None:
    """Add to parameters that only go with certain values of others the condition that says so.

    Args:
        only_with: Parameter to what others must be, as `Method.only_with` has it.
    """
    for name, others in only_with.items():
        for other, allowed in others.items():
            if name not in parameters:
                continue
            parameter, given = parameters[name], dict(parameters[name].when)
            parent = parameters.get(other)
            possible = given.get(other) or (parent.possible if parent else (specs[other].default,)) or ()
            fitting = tuple(value for value in possible if value is not None and value in allowed)
            if fitting and parent is not None and other not in given and len(fitting) < len(possible):
                parameters[name] = replace(parameter, when=(*parameter.when, (other, fitting)))
            elif not fitting or (other in given and len(fitting) < len(possible)):
                known = one_of([str(value) for value in allowed])
                law = f"must be left out unless {other} is one of: {known}"
                got = one_of([str(value) for value in possible])
                document.faults.add(("parameters", name), f"{law}, but {other} may be {got}.")


def drawing_order(parameters: Iterable[Parameter]) -> tuple[str, ...]:
    """Return the names so that each parameter comes after those its condition needs; the file's order otherwise.

    Raises:
        graphlib.CycleError: the conditions go in a circle.
    """
    graph = {p.name: [other for other, _ in p.when] for p in parameters}
    return tuple(name for name in TopologicalSorter(graph).static_order() if name in graph)


def _read_when(
    document: Document,
    path: KeyPath,
    given: object,
    section: Mapping[str, Any],
    parameters: Mapping[str, Parameter],
    specs: Mapping[str, ParameterSpec],
) -> tuple[tuple[str, tuple[Scalar, ...]], ...]:
    if not isinstance(given, dict) or not given:
        document.faults.add(path, f"must map parameters to the values they must have, but got {shown(given)}.")
        return ()
    conditions = []
    for other, wanted in given.items():
        here = (*path, other)
        if other not in section or other not in specs:
            known = one_of([name for name in section if name in specs], other)
            document.faults.add(here, f"must name a parameter of this space: {known}, but got {other!r}.")
        elif other in parameters:  # else its own fault is known already
            conditions.append((other, _wanted_values(document, here, wanted, parameters[other], specs[other])))
    return tuple(conditions)


def _wanted_values(
    document: Document, path: KeyPath, wanted: object, parent: Parameter, spec: ParameterSpec
) -> tuple[Scalar, ...]:
    possible = parent.possible
    if possible is None:
        message = f"must be a parameter with a list of values, but {parent.name} may take any number in a range."
        document.faults.add(path, message)
        return ()
    items = list(enumerate(wanted)) if isinstance(wanted, list) else [(None, wanted)]
    if not items:
        document.faults.add(path, "must be a value or a list of values, but got an empty list.")
    values: list[Scalar] = []
    for index, item in items:
        here = path if index is None else (*path, index)
        try:
            value = spec.check(item)
        except ValueError as error:
            document.faults.add(here, f"{error}, but got {shown(item)}.")
            continue
        match = next((other for other in possible if spec.same(value, other)), None)
        if match is None:
            known = one_of([str(other) for other in possible[:20]], value)
            document.faults.add(here, f"must be a value that {parent.name} may have: {known}, but got {shown(item)}.")
        else:
            values.append(match)
    return tuple(values)
