"""`method`, and the `parameters` section: every parameter with its conditions."""

from __future__ import annotations

from loraxs_search.search_space._conditions import parameters_of, read_conditions
from loraxs_search.search_space._declaration import Declaration
from loraxs_search.search_space._declared import PARAMETERS, DeclaredParameter
from loraxs_search.search_space._distributions import METHOD, Alternative, Parameter
from loraxs_search.search_space._document import Document
from loraxs_search.search_space._faults import one_of, shown
from loraxs_search.search_space._parameter_specs import SpaceSpecs, method_spec


def read_method(document: Document, given: object) -> Parameter | None:
    """Read the `method` of a space, one or a choice of several; None where its parameters cannot be read then."""
    distribution = Declaration(document, (METHOD,), method_spec(), with_conditions=False).read(given)
    return None if distribution is None else Parameter(METHOD, (Alternative(distribution),))


def read_parameters(document: Document, section: object, method: Parameter) -> dict[str, Parameter]:
    """Read the section into parameters, in the file's order; faults go to the document.

    Args:
        method: The methods whose own parameters the section may have beside those of all. Where there are several it
            comes first in what is returned.
    """
    if not isinstance(section, dict):
        document.faults.add((PARAMETERS,), f"must map parameter names to values, but got {shown(section)}.")
        return {}
    specs = SpaceSpecs([str(name) for name in method.possible or ()])
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
    read_conditions(document, declared, parameters, specs)
    if len(specs.methods) > 1:
        return parameters
    return {} if document.faults else parameters_of(parameters, specs.methods[0])
