"""`method`, and the `parameters` section: every parameter, with `when:`, the condition under which a trial has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError

from loraxs_search.errors import must_be, one_of
from loraxs_search.methods import ParameterSpec, get_method
from loraxs_search.records import PeftSettings, Scalar
from loraxs_search.search_space._distributions import (
    METHOD,
    Alternative,
    Condition,
    Parameter,
    drawing_order,
    parameters_of,
)
from loraxs_search.search_space._document import Document, KeyPath, shown
from loraxs_search.search_space._parameter_forms import PARAMETERS, Declaration, DeclaredParameter
from loraxs_search.search_space._parameter_specs import SpaceSpecs, both, method_spec


def _read_conditions(
    document: Document,
    declared: Mapping[str, DeclaredParameter],
    parameters: dict[str, Parameter],
    specs: SpaceSpecs,
) -> None:
    """Add each declared condition to its parameter; faults go to the document."""
    items = ((parameter, *each) for parameter in declared.values() for each in enumerate(parameter.items))
    for parameter, index, item in items:
        if "when" not in item.keys:
            continue
        reader = _ConditionReader(document, (*item.path, "when"), declared, parameters, specs)
        when = reader.read(item.keys["when"])
        reader.check_holds(parameter.name, item.methods, when)
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
        self._document, self._path, self._declared = document, path, declared
        self._parameters, self._specs = parameters, specs

    def read(self, given: object) -> Condition:
        """Return the names that a condition asks for, each with the values that it may have."""
        if not isinstance(given, dict) or not given:
            message = f"must map parameters to the values they must have, but got {shown(given)}."
            self._document.faults.add(self._path, message)
            return ()
        conditions = []
        for other, wanted in given.items():
            if other != METHOD and other not in self._declared:
                names = [*([METHOD] if len(self._specs.methods) > 1 else []), *self._declared]
                law = must_be(other, names, "must name a parameter of this space")
                self._document.faults.add((*self._path, other), f"{law}, but got {other!r}.")
            elif other in self._parameters:  # else its own fault is known already
                conditions.append((other, self._wanted(other, wanted)))
        return tuple(conditions)

    def check_holds(self, name: str, methods: Sequence[str], when: Condition) -> None:
        """Refuse a condition on a parameter that no trial has together with this one."""
        if not methods:
            return  # its own fault is known already
        for other, _ in when:
            if other in self._declared and not set(methods) & set(self._declared[other].takers):
                law = f"must name a parameter that trials with {name} have (those of {both(methods)})"
                takers = self._declared[other].takers
                verb = "takes" if len(takers) == 1 else "take"
                self._document.faults.add((*self._path, other), f"{law}, but only {both(takers)} {verb} {other}.")

    def _wanted(self, other: str, wanted: object) -> tuple[Scalar, ...]:
        path, possible = (*self._path, other), self._parameters[other].possible
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
        """Return the value of the parent that is meant; None if there is a fault."""
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
            law = must_be(value, known, f"must be a value that {other} may have")
            self._document.faults.add(path, f"{law}, but got {shown(item)}.")
        return match

    def _law(self, other: str, item: object) -> ParameterSpec:
        """Return the law that a value is meant by: of a method that takes the parent and allows it."""
        if other == METHOD:
            return method_spec(self._specs.methods)
        laws = self._specs.laws(other, self._declared[other].takers)
        return next((law for law in laws if _allows(law, item)), laws[0])


def _allows(law: ParameterSpec, item: object) -> bool:
    try:
        law.check(item)
    except ValueError:
        return False
    return True


def read_method(document: Document, given: object, named: Mapping[str, PeftSettings]) -> Parameter | None:
    """Read the `method` of a space, one or a choice of several; None if its parameters cannot be read then.

    Args:
        named: The methods of `peft_methods`.
    """
    distribution = Declaration(document, (METHOD,), method_spec(named), with_conditions=False).read(given)
    return None if distribution is None else Parameter(METHOD, (Alternative(distribution),))


def read_parameters(
    document: Document, section: object, method: Parameter, named: Mapping[str, PeftSettings]
) -> dict[str, Parameter]:
    """Read the section into parameters, in the file's order; faults go to the document.

    Args:
        method: The methods whose own parameters the section may have beside those of all. Where there are several it
            comes first in what is returned.
        named: The methods of `peft_methods`.
    """
    if not isinstance(section, dict):
        document.faults.add((PARAMETERS,), f"must map parameter names to values, but got {shown(section)}.")
        return {}
    specs = SpaceSpecs([get_method(str(name), named.get(str(name))) for name in method.possible or ()])
    parameters: dict[str, Parameter] = {METHOD: method}
    declared = {}
    for name, given in section.items():
        if specs.takers(name):
            declared[name] = DeclaredParameter(document, name, given, specs)
        else:
            document.faults.add((PARAMETERS, name), specs.unknown(name))
    parameters |= {name: read for name, each in declared.items() if (read := each.read()) is not None}
    for name, methods in specs.required().items():
        if name not in section:
            law, *_ = specs.laws(name, methods)
            by_methods = f" by {one_of(methods)}" if len(specs.methods) > 1 else ""
            document.faults.add((PARAMETERS, name), f"is required{by_methods}: {law}, or a range of them.")
    _read_conditions(document, declared, parameters, specs)
    if len(specs.methods) > 1:
        return parameters
    return {} if document.faults else parameters_of(parameters, specs.methods[0])
