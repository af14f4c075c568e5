"""`when:` — a parameter that is present only if others have certain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from loraxs_search.methods import ParameterSpec
from loraxs_search.records import Scalar
from loraxs_search.search_space._declared import DeclaredParameter, conditioned
from loraxs_search.search_space._distributions import METHOD, Condition, Parameter
from loraxs_search.search_space._document import Document
from loraxs_search.search_space._faults import KeyPath, asking, one_of, shown
from loraxs_search.search_space._parameter_specs import SpaceSpecs, both, method_spec


def read_conditions(
    document: Document,
    declared: Mapping[str, DeclaredParameter],
    parameters: dict[str, Parameter],
    specs: SpaceSpecs,
) -> None:
    """Add each declared condition to its parameter; faults go to the document."""
    for parameter, index, item in conditioned(declared):
        reader = _ConditionReader(document, (*item.path, "when"), declared, parameters, specs)
        when = reader.read(item.keys["when"])
        _check_holds(document, reader.path, parameter.name, item.methods, when, declared)
        if parameter.name in parameters:
            read = parameters[parameter.name]
            alternatives = list(read.alternatives)
            alternatives[index] = replace(alternatives[index], when=when)
            parameters[parameter.name] = replace(read, alternatives=tuple(alternatives))
    try:
        drawing_order(parameters.values())
    except CycleError as error:
        circle: list[str] = error.args[1]
        path = ("parameters", circle[-1], "when")
        document.faults.add(path, f"must not lead back to itself, but got {' -> '.join(reversed(circle))}.")


def drawing_order(parameters: Iterable[Parameter]) -> tuple[str, ...]:
    """Return the names so that each parameter comes after those its condition needs; the file's order otherwise.

    Raises:
        graphlib.CycleError: the conditions go in a circle.
    """
    graph = {p.name: p.parents() for p in parameters}
    return tuple(name for name in TopologicalSorter(graph).static_order() if name in graph)


def parameters_of(parameters: Mapping[str, Parameter], method: str) -> dict[str, Parameter]:
    """Return the parameters of the trials of one method, without the choice of the method, in the file's order.

    Raises:
        graphlib.CycleError: the conditions go in a circle.
    """
    known: dict[str, Parameter] = {}
    for name in drawing_order(parameters.values()):
        parameter = parameters[name].of_method(method, known)
        if parameter is not None and name != METHOD:
            known[name] = parameter
    return {name: known[name] for name in parameters if name in known}


def _check_holds(
    document: Document,
    path: KeyPath,
    name: str,
    methods: Sequence[str],
    when: Condition,
    declared: Mapping[str, DeclaredParameter],
) -> None:
    """Refuse a condition on a parameter that no trial has together with this one."""
    if not methods:
        return  # its own fault is known already
    for other, _ in when:
        if other in declared and not set(methods) & set(declared[other].takers):
            law = f"must name a parameter that trials with {name} have (those of {both(methods)})"
            takers = declared[other].takers
            verb = "takes" if len(takers) == 1 else "take"
            document.faults.add((*path, other), f"{law}, but {other} is one that {both(takers)} {verb}.")


class _ConditionReader:
    """Reads one `when`; faults go to the document."""

    def __init__(
        self,
        document: Document,
        path: KeyPath,
        declared: Mapping[str, DeclaredParameter],
        parameters: Mapping[str, Parameter],
        specs: SpaceSpecs,
    ) -> None:
        self._document, self.path, self._declared = document, path, declared
        self._parameters, self._specs = parameters, specs

    def read(self, given: object) -> Condition:
        """Return the names that a condition asks for, each with the values that it may have."""
        if not isinstance(given, dict) or not given:
            message = f"must map parameters to the values they must have, but got {shown(given)}."
            self._document.faults.add(self.path, message)
            return ()
        conditions = []
        for other, wanted in given.items():
            if other != METHOD and other not in self._declared:
                names = [*([METHOD] if len(self._specs.methods) > 1 else []), *self._declared]
                law = asking(f"must name a parameter of this space: {one_of(names, other)}", other, names)
                message = f"{law}, but got {other!r}."
                self._document.faults.add((*self.path, other), message)
            elif other in self._parameters:  # else its own fault is known already
                conditions.append((other, self._wanted(other, wanted)))
        return tuple(conditions)

    def _wanted(self, other: str, wanted: object) -> tuple[Scalar, ...]:
        path, possible = (*self.path, other), self._parameters[other].possible
        if possible is None:
            message = f"must be a parameter with a list of values, but {other} may take any number in a range."
            self._document.faults.add(path, message)
            return ()
        items = list(enumerate(wanted)) if isinstance(wanted, list) else [(None, wanted)]
        if not items:
            self._document.faults.add(path, "must be a value or a list of values, but got an empty list.")
        values = [self._value(other, path if index is None else (*path, index), item) for index, item in items]
        return tuple(value for value in values if value is not None)

    def _value(self, other: str, path: KeyPath, item: object) -> Scalar | None:
        """Return the value of the parent that is meant; None where there is a fault."""
        spec = self._law(other, item)
        possible = self._parameters[other].possible or ()
        try:
            value = spec.check(item)
        except ValueError as error:
            self._document.faults.add(path, f"{error}, but got {shown(item)}.")
            return None
        match = next((each for each in possible if spec.same(value, each)), None)
        if match is None:
            known = [str(each) for each in possible[:20]]
            law = asking(f"must be a value that {other} may have: {one_of(known, value)}", value, known)
            message = f"{law}, but got {shown(item)}."
            self._document.faults.add(path, message)
        return match

    def _law(self, other: str, item: object) -> ParameterSpec:
        """Return the law that a value is meant by: of the methods that take the parent, one that allows it."""
        if other == METHOD:
            return method_spec()
        laws = self._specs.laws(other, self._declared[other].takers)
        return next((law for law in laws if _allows(law, item)), laws[0])


def _allows(law: ParameterSpec, item: object) -> bool:
    try:
        law.check(item)
    except ValueError:
        return False
    return True
