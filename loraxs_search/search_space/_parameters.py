"""`method`, and the `parameters` section: a value, a form, or a list of these under conditions, for each parameter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from graphlib import CycleError
from typing import Any

from loraxs_search.errors import asking, meant, must_be, one_of
from loraxs_search.methods import METHODS, get_method
from loraxs_search.plugins import ParameterSpec
from loraxs_search.records.literals import Scalar
from loraxs_search.records.trial import PeftSettings
from loraxs_search.search_space.distributions import (
    METHOD,
    PARAMETERS,
    Alternative,
    Condition,
    Distribution,
    Parameter,
    drawing_order,
    parameters_of,
)
from loraxs_search.search_space.document import Document, KeyPath, as_mapping, shown
from loraxs_search.search_space.parameter_specs import SpaceSpecs, both, joint_law, method_spec

PEFT_METHODS = "peft_methods"
_OPTIONS = {"value": (), "choice": (), "uniform": ("step",), "log_uniform": (), "int": ("step", "log")}  # by form
_MAX_STEPS = 10**9  # decimals of 28 digits divide exactly far beyond it


# ---- one form --------------------------------------------------------------------------------------------------------
class _Refused(Exception):  # noqa: N818  # it ends the reading of one form, and is no error
    """A form cannot be read.

    Args:
        inside: Where in it.
        message: What is wrong; empty if the document has it already.
    """

    def __init__(self, inside: KeyPath = (), message: str = "") -> None:
        self.inside, self.message = inside, message


@dataclass(frozen=True)
class _FormReader:
    """Reads a value or a form.

    Args:
        extra: Keys that may stand beside a form.
        suffix: Follows a fault: for which methods the law is.
    """

    document: Document
    path: KeyPath
    spec: ParameterSpec
    extra: tuple[str, ...] = ("when",)
    suffix: str = ""

    def read(self, given: object) -> Distribution | None:
        """Return what may be drawn; None if there is a fault, which the document has then."""
        try:
            return self._form(given)
        except _Refused as refused:
            if refused.message:
                self.document.fault((*self.path, *refused.inside), refused.message)
            return None

    def _form(self, given: object) -> Distribution:
        if not isinstance(given, dict):
            if isinstance(given, list) and self.spec.kind != "modules":
                law = "must be a value or a form, but got a list"
                raise _Refused((), f"{law}; write {{choice: {shown(given)}}}.")
            return Distribution("constant", self._values({(): given}))
        forms = [form for form in _OPTIONS if form in given]
        if len(forms) != 1:
            got = f"{len(forms)}: {one_of(forms)}" if forms else one_of(given) or "none"
            slip = next((key for key in given if key not in forms and meant(key, _OPTIONS)), "")
            law = asking(f"must have exactly one of: {one_of(_OPTIONS)}", slip, _OPTIONS)
            raise _Refused((), f"{law}, but got {got}.")
        (form,) = forms
        known = (form, *_OPTIONS[form], *self.extra)
        for key in given:
            if key not in known:
                self.document.fault((*self.path, key), f"{must_be(key, known)}, but got {key!r}.")
        if form == "value":
            return Distribution("constant", self._values({("value",): given["value"]}))
        if form != "choice":
            return self._range(form, given)
        if not isinstance(items := given["choice"], list) or not items:
            raise _Refused(("choice",), f"must be a list of at least one value, but got {shown(items)}.")
        values = self._values({("choice", index): item for index, item in enumerate(items)})
        for index, value in enumerate(values):
            if any(self.spec.same(value, other) for other in values[:index]):
                law = f"must list each value once, but {shown(items[index])} came before."
                raise _Refused(("choice", index), law)
        return Distribution("choice", values)

    def _range(self, form: str, given: Mapping[str, Any]) -> Distribution:
        kind, log, bounds = self.spec.kind, form == "log_uniform" or given.get("log", False), given[form]
        if kind != ("int" if form == "int" else "float"):
            remedy = {"int": "int or choice", "float": "uniform (with step) or choice"}.get(kind, "choice")
            raise _Refused((form,), f"must be {self.spec}, so {form} does not fit; use {remedy}.")
        if not isinstance(log, bool):
            raise _Refused(("log",), f"must be true or false, but got {shown(log)}.")
        step: Any = given.get("step") if "step" in _OPTIONS[form] else None
        if step is not None:
            try:
                step = ParameterSpec(kind, low=0, above=True).check(step)
            except ValueError as error:
                self.document.fault((*self.path, "step"), f"{error}, but got {shown(step)}.")
                step = None
        if log and step not in (None, 1):
            raise _Refused(("step",), "must be left out beside log: true, where steps grow with the value.")
        if not isinstance(bounds, list) or len(bounds) != 2:
            raise _Refused((form,), f"must be [low, high], but got {shown(bounds)}.")
        low, high = map(float, self._values({(form, index): bound for index, bound in enumerate(bounds)}))
        if low >= high:
            raise _Refused((form,), f"must have low < high, but got {shown(bounds)}; one value is a constant.")
        if log and low <= 0:
            raise _Refused((form, 0), f"must be above 0, as logarithms need, but got {shown(bounds[0])}.")
        if step is not None:
            first, last, by = (Decimal(str(number)) for number in (*bounds, step))
            if last - first > by * _MAX_STEPS:
                law = f"must divide {first} to {last} into at most {_MAX_STEPS:,} steps"
                raise _Refused(("step",), f"{law}, but got {step}.")
            if (last - first) % by:
                end = first + (last - first) // by * by
                law = f"must lead from {first} to {last} exactly"
                raise _Refused(("step",), f"{law}, but got {step}; nearest: high {end} or {end + by}.")
        if form == "int":
            return Distribution("int", low=int(low), high=int(high), step=int(step or 1), log=log)
        return Distribution("float", low=low, high=high, step=step, log=log)

    def _values(self, given: Mapping[KeyPath, object]) -> tuple[Scalar, ...]:
        """Return values in the parameter's own type; every fault goes to the document."""
        values = []
        for inside, value in given.items():
            try:
                values.append(self.spec.check(value))
            except ValueError as error:
                got = self.document.got((*self.path, *inside), value)
                self.document.fault((*self.path, *inside), f"{error}, but got {got}{self.suffix}.")
        if len(values) < len(given):
            raise _Refused
        return tuple(values)


def read_method(document: Document, given: object, named: Mapping[str, PeftSettings]) -> Parameter | None:
    """Read the `method` of a space, one or a choice of several; None if its parameters cannot be read then.

    Args:
        named: The methods of `peft_methods`.
    """
    distribution = _FormReader(document, (METHOD,), method_spec(named), extra=()).read(given)
    return None if distribution is None else Parameter(METHOD, (Alternative(distribution),))


# ---- the section -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Item:
    """One of the forms that a parameter is declared by.

    Args:
        methods: To whose trials it may apply: they take the parameter, and no item before it is for all of them. None
            if there is a fault.
    """

    path: KeyPath
    given: object
    methods: tuple[str, ...]


def read_parameters(
    document: Document, section: object, method: Parameter, named: Mapping[str, PeftSettings]
) -> dict[str, Parameter]:
    """Read the section into parameters, in the file's order; faults go to the document.

    Conditions are read last, since they may name parameters that come later.

    Args:
        method: The methods whose own parameters the section may have beside those of all. Where there are several it
            comes first in what is returned.
        named: The methods of `peft_methods`.
    """
    if not isinstance(section, dict):
        document.fault((PARAMETERS,), f"must map parameter names to values, but got {shown(section)}.")
        return {}
    specs = SpaceSpecs([get_method(str(name), named.get(str(name))) for name in method.possible or ()])
    parameters, forms = {METHOD: method}, dict[str, list[_Item]]()
    for name, given in section.items():
        if not (takers := specs.takers(name)):
            document.fault((PARAMETERS, name), specs.unknown(name))
            continue
        forms[name] = _items(document, specs, name, given)
        found = [_distribution(document, specs, name, item) for item in forms[name]]
        alternatives = tuple(Alternative(each) for each in found if each is not None)
        if len(alternatives) == len(found):
            parameters[name] = Parameter(name, alternatives, () if takers == specs.methods else takers)
    for name, methods in specs.required().items():
        if name not in section:
            spec, *_ = specs.laws(name, methods)
            by_methods = f" by {one_of(methods)}" if len(specs.methods) > 1 else ""
            document.fault((PARAMETERS, name), f"is required{by_methods}: {spec}, or a range of them.")
    for name, items in forms.items():
        whens = [_condition(document, specs, parameters, forms, name, item) for item in items]
        if (read := parameters.get(name)) is not None:
            pairs = zip(read.alternatives, whens, strict=True)
            parameters[name] = replace(read, alternatives=tuple(replace(each, when=when) for each, when in pairs))
    try:
        drawing_order(parameters.values())
    except CycleError as error:
        circle: list[str] = error.args[1]
        law = f"must not lead back to itself, but got {' -> '.join(reversed(circle))}."
        document.fault((PARAMETERS, circle[-1], "when"), law)
    if len(specs.methods) > 1:
        return parameters
    return {} if document.faults else parameters_of(parameters, specs.methods[0])


def _items(document: Document, specs: SpaceSpecs, name: str, given: object) -> list[_Item]:
    """Return the forms of a parameter, each with the methods that it may be for.

    An item behind one that always holds is a fault, and so is a required parameter that some trial would lack.
    """
    path, takers = (PARAMETERS, name), specs.takers(name)
    given_items: list[tuple[KeyPath, object]] = [(path, given)]
    if isinstance(given, list) and any(isinstance(item, dict) for item in given):
        given_items = [((*path, index), form) for index, form in enumerate(given)]
    items, left = list[_Item](), takers
    for here, form in given_items:
        when, methods = as_mapping(form).get("when", {}), left or takers
        if METHOD in (named := as_mapping(when)):
            is_list = isinstance(named[METHOD], list)
            wanted = named[METHOD] if is_list else [named[METHOD]]
            for number, method in enumerate(wanted):
                if method in specs.methods and method not in takers:
                    law = f"must name a method that takes {name}: {one_of(takers)}"
                    inside = (*here, "when", METHOD, *([number] if is_list else []))
                    document.fault(inside, f"{law}, but got {shown(method)}.")
            asked = tuple(method for method in takers if method in wanted)
            methods = tuple(method for method in asked if method in left) or asked
        items.append(_Item(here, form, methods))
        if isinstance(when, dict) and when.keys() <= {METHOD}:  # every trial of its methods has it
            left = tuple(method for method in left if method not in methods)
        if here != given_items[-1][0] and "when" not in as_mapping(form):
            law = "must have `when`, as all but the last of a list: those after it would never be drawn."
            document.fault(here, law)
    if uncovered := [method for method in specs.required().get(name, ()) if method in left]:
        of_methods = f" of {both(uncovered)}" if len(specs.methods) > 1 else ""
        why = f"since every trial{of_methods} needs a {name}."
        if items[0].path == path:
            document.fault((*path, "when"), f"must stand in a list of forms whose last has no `when`, {why}")
        else:
            document.fault(path, f"must end with an item without `when`, {why}")
    return items


def _distribution(document: Document, specs: SpaceSpecs, name: str, item: _Item) -> Distribution | None:
    laws = specs.laws(name, item.methods or specs.takers(name))
    if not item.methods and len(laws) > 1:
        return None  # whose law it is meant by is not known
    if (law := joint_law(laws)) is None:
        each = "; ".join(f"{specs.laws(name, [method])[0]} for {method}" for method in item.methods)
        remedy = "must be declared in a list, an item for each method with `when: {method: ...}`"
        document.fault(item.path, f"{remedy}, since its values differ: {each}.")
        return None
    suffix = "" if law in laws else f", as {both(item.methods)} take it"
    return _FormReader(document, item.path, law, suffix=suffix).read(item.given)


def _condition(
    document: Document,
    specs: SpaceSpecs,
    parameters: Mapping[str, Parameter],
    forms: Mapping[str, object],
    name: str,
    item: _Item,
) -> Condition:
    """Return the parameters that an item's `when` asks for, each with the values that it may have."""
    if "when" not in as_mapping(item.given):
        return ()
    path, given = (*item.path, "when"), as_mapping(item.given)["when"]
    if not isinstance(given, dict) or not given:
        document.fault(path, f"must map parameters to the values they must have, but got {shown(given)}.")
        return ()
    conditions = []
    for other, wanted in given.items():
        if other != METHOD and other not in forms:
            names = [*([METHOD] if len(specs.methods) > 1 else []), *forms]
            law = must_be(other, names, "must name a parameter of this space")
            document.fault((*path, other), f"{law}, but got {other!r}.")
        elif other in parameters:  # else its own fault is known already
            laws = specs.laws(other, specs.takers(other)) or [method_spec(specs.methods)]
            values = _wanted(document, (*path, other), parameters[other], laws, wanted)
            conditions.append((other, values))
            takers = specs.takers(other) if other != METHOD else item.methods
            if item.methods and not set(item.methods) & set(takers):  # no trial has both
                law = f"must name a parameter that trials with {name} have (those of {both(item.methods)})"
                verb = "takes" if len(takers) == 1 else "take"
                document.fault((*path, other), f"{law}, but only {both(takers)} {verb} {other}.")
    return tuple(conditions)


def _wanted(
    document: Document, path: KeyPath, other: Parameter, laws: list[ParameterSpec], wanted: object
) -> tuple[Scalar, ...]:
    """Return the values of another parameter that a condition asks for."""
    if (possible := other.possible) is None:
        law = f"must be a parameter with a list of values, but {other.name} may take any number in a range."
        document.fault(path, law)
        return ()
    if wanted == []:
        document.fault(path, "must be a value or a list of values, but got an empty list.")
    values = list[Scalar]()
    for index, item in enumerate(wanted if isinstance(wanted, list) else [wanted]):
        here, errors = (*path, index) if isinstance(wanted, list) else path, list[str]()
        for spec in laws:  # the first that fits is the one that the value is meant by
            try:
                value = spec.check(item)
            except ValueError as error:
                errors.append(f"{error}, but got {shown(item)}.")
                continue
            values += (matches := [each for each in possible if spec.same(value, each)][:1])
            if not matches:
                rule = must_be(value, list(map(str, possible[:20])), f"must be a value that {other.name} may have")
                document.fault(here, f"{rule}, but got {shown(item)}.")
            break
        else:
            document.fault(here, errors[0])
    return tuple(values)


# ---- peft_methods ----
def read_peft_methods(document: Document) -> dict[str, PeftSettings]:
    """Return what the section says, by name, with all that `parameters` may search; faults go to the document."""
    section = as_mapping(document.data).get(PEFT_METHODS)
    if not isinstance(section, dict | None):
        message = f"must map names to configs of PEFT, as in {{vera: {{peft_type: VERA}}}}, but got {shown(section)}."
        document.fault((PEFT_METHODS,), message)
    read = {name: _settings(document, name, given) for name, given in as_mapping(section).items()}
    return {name: settings for name, settings in read.items() if settings is not None}


def _settings(document: Document, name: str, given: object) -> PeftSettings | None:
    from loraxs_search.methods.peft_methods import REFUSED_FIELDS, config_fields, peft_types, refused_type

    path, before = (PEFT_METHODS, name), len(document.faults)
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or name in METHODS.names():
        law = "must be a name of its own, in lower case, of letters, digits and hyphens"
        document.fault(path, f"{law}, but got {shown(name)}.")
    config = as_mapping(given)
    peft_type = config.get("peft_type")
    if peft_type not in (known := list(peft_types())):
        reason = refused_type(str(peft_type))
        law = f"must be another type: PEFT's {peft_type} {reason}" if reason else must_be(peft_type, known)
        document.fault((*path, "peft_type"), f"{law}, but got {shown(peft_type)}.")
        return None
    fields = config_fields(peft_type)
    for field, value in config.items():
        if field in REFUSED_FIELDS:
            document.fault((*path, field), f"{REFUSED_FIELDS[field]}.")
        elif field.endswith("dropout") and value:
            document.fault((*path, field), "must be left out: trials train without dropout.")
        elif field not in fields and field != "peft_type":
            document.fault((*path, field), f"{must_be(field, fields)}, but got {field!r}.")
    fixed = {
        field: _value(document, (*path, field), fields, value) for field, value in config.items() if field in fields
    }
    searched = {
        field: spec.kind
        for field, spec in fields.items()
        if spec and field not in fixed and not field.endswith("dropout")
    }
    return PeftSettings(peft_type, fixed, searched) if len(document.faults) == before else None


def _value(document: Document, path: KeyPath, fields: Mapping[str, Any], value: object) -> object:
    """Return a field's value in its own type; lists, mappings and null are PEFT's to judge."""
    spec = fields[str(path[-1])]
    if spec is None or value is None:
        return value
    try:
        return spec.check(value)
    except ValueError as error:
        form = "; search it in `parameters`" if isinstance(value, dict) else ""
        document.fault(path, f"{error}, but got {document.got(path, value)}{form}.")
        return value
