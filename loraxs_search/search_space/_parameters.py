"""`method`, and the `parameters` section: a value, a form, or a list of these under conditions, for each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from graphlib import CycleError
from typing import Any

from loraxs_search.errors import asking, meant, must_be, one_of
from loraxs_search.methods import get_method
from loraxs_search.methods.parameters import ParameterSpec
from loraxs_search.records.literals import Scalar
from loraxs_search.records.trial import PeftSettings
from loraxs_search.search_space.distributions import (
    METHOD,
    Alternative,
    Condition,
    Distribution,
    Parameter,
    constant,
    drawing_order,
    parameters_of,
)
from loraxs_search.search_space.document import Document, KeyPath, as_mapping, shown
from loraxs_search.search_space.parameter_specs import SpaceSpecs, both, joint_law, method_spec

PARAMETERS = "parameters"
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
            if isinstance(given, dict):
                return self._form(given)
            if isinstance(given, list) and self.spec.kind != "modules":
                law = "must be a value or a form, but got a list"
                raise _Refused((), f"{law}; write {{choice: {shown(given)}}}.")
            return constant(*self._values({(): given}))
        except _Refused as refused:
            if refused.message:
                self.document.fault((*self.path, *refused.inside), refused.message)
            return None

    def _form(self, given: dict[str, Any]) -> Distribution:
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
            return constant(*self._values({("value",): given["value"]}))
        return self._choice(given["choice"]) if form == "choice" else self._range(form, given)

    def _choice(self, items: object) -> Distribution:
        if not isinstance(items, list) or not items:
            raise _Refused(("choice",), f"must be a list of at least one value, but got {shown(items)}.")
        values = self._values({("choice", index): item for index, item in enumerate(items)})
        for index, value in enumerate(values):
            if any(self.spec.same(value, other) for other in values[:index]):
                law = f"must list each value once, but {shown(items[index])} came before."
                raise _Refused(("choice", index), law)
        return Distribution("choice", tuple(values))

    def _range(self, form: str, given: Mapping[str, Any]) -> Distribution:
        kind, log, bounds = self.spec.kind, form == "log_uniform" or given.get("log", False), given[form]
        if kind != ("int" if form == "int" else "float"):
            remedy = {"int": "int or choice", "float": "uniform (with step) or choice"}.get(kind, "choice")
            raise _Refused((form,), f"must be {self.spec}, so {form} does not fit; use {remedy}.")
        if not isinstance(log, bool):
            raise _Refused(("log",), f"must be true or false, but got {shown(log)}.")
        step = self._step(given.get("step") if "step" in _OPTIONS[form] else None)
        if log and step not in (None, 1):
            raise _Refused(("step",), "must be left out beside log: true, where steps grow with the value.")
        if not isinstance(bounds, list) or len(bounds) != 2:
            raise _Refused((form,), f"must be [low, high], but got {shown(bounds)}.")
        low, high = map(float, self._values({(form, index): bound for index, bound in enumerate(bounds)}))
        if low >= high:
            raise _Refused((form,), f"must have low < high, but got {shown(bounds)}; one value is a constant.")
        if log and low <= 0:
            raise _Refused((form, 0), f"must be above 0, as logarithms need, but got {shown(bounds[0])}.")
        self._check_step(bounds[0], bounds[1], step)
        if form == "int":
            return Distribution("int", low=int(low), high=int(high), step=int(step or 1), log=log)
        return Distribution("float", low=low, high=high, step=step, log=log)

    def _step(self, given: object) -> int | float | None:
        if given is None:
            return None
        try:
            step = ParameterSpec(self.spec.kind, low=0, above=True).check(given)
        except ValueError as error:
            self.document.fault((*self.path, "step"), f"{error}, but got {shown(given)}.")
            return None
        return None if isinstance(step, str) else step

    def _check_step(self, first: object, last: object, step: int | float | None) -> None:
        """Refuse a step that does not lead from the first value to the last, or of which there are too many."""
        if step is None:
            return
        low, high, by = (Decimal(str(number)) for number in (first, last, step))
        if high - low > by * _MAX_STEPS:
            law = f"must divide {low} to {high} into at most {_MAX_STEPS:,} steps"
            raise _Refused(("step",), f"{law}, but got {step}.")
        if (high - low) % by:
            end = low + (high - low) // by * by
            law = f"must lead from {low} to {high} exactly"
            raise _Refused(("step",), f"{law}, but got {step}; nearest: high {end} or {end + by}.")

    def _values(self, given: Mapping[KeyPath, object]) -> list[Scalar]:
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
        return values


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

    @property
    def keys(self) -> Mapping[str, Any]:
        return as_mapping(self.given)

    @property
    def depends_on_method_alone(self) -> bool:
        """Whether it applies to every trial of its methods."""
        when = self.keys.get("when", {})
        return isinstance(when, dict) and when.keys() <= {METHOD}


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
        document.fault((PARAMETERS,), f"must map parameter names to values, but got {shown(section)}.")
        return {}
    specs = SpaceSpecs([get_method(str(name), named.get(str(name))) for name in method.possible or ()])
    parameters = _Section(document, section, method, specs).read()
    if len(specs.methods) > 1:
        return parameters
    return {} if document.faults else parameters_of(parameters, specs.methods[0])


class _Section:
    """Reads the parameters, and then their conditions, which may name parameters that come later.

    Args:
        specs: The laws of the space's methods.
    """

    def __init__(self, document: Document, section: dict[str, Any], method: Parameter, specs: SpaceSpecs) -> None:
        self._document, self._section, self._specs = document, section, specs
        self._parameters: dict[str, Parameter] = {METHOD: method}
        self._items: dict[str, list[_Item]] = {}

    def read(self) -> dict[str, Parameter]:
        for name, given in self._section.items():
            if self._specs.takers(name):
                self._items[name] = list(self._split(name, given))
                self._check_reach(name, given)
                found = [self._distribution(name, item) for item in self._items[name]]
                alternatives = tuple(Alternative(each) for each in found if each is not None)
                if len(alternatives) == len(found):
                    takers = self._specs.takers(name)
                    self._parameters[name] = Parameter(
                        name, alternatives, () if takers == self._specs.methods else takers
                    )
            else:
                self._document.fault((PARAMETERS, name), self._specs.unknown(name))
        for name, methods in self._specs.required().items():
            if name not in self._section:
                spec, *_ = self._specs.laws(name, methods)
                by_methods = f" by {one_of(methods)}" if len(self._specs.methods) > 1 else ""
                self._document.fault((PARAMETERS, name), f"is required{by_methods}: {spec}, or a range of them.")
        for name, items in self._items.items():
            whens = [self._condition(name, item) for item in items]
            if (read := self._parameters.get(name)) is not None:
                pairs = zip(read.alternatives, whens, strict=True)
                alternatives = tuple(Alternative(each.distribution, when) for each, when in pairs)
                self._parameters[name] = Parameter(name, alternatives, read.methods)
        try:
            drawing_order(self._parameters.values())
        except CycleError as error:
            circle: list[str] = error.args[1]
            law = f"must not lead back to itself, but got {' -> '.join(reversed(circle))}."
            self._document.fault((PARAMETERS, circle[-1], "when"), law)
        return self._parameters

    def _split(self, name: str, given: object) -> list[_Item]:
        """Return the forms of a parameter, each with the methods that it may be for."""
        takers = left = self._specs.takers(name)
        is_list = isinstance(given, list) and any(isinstance(item, dict) for item in given)
        forms: list[tuple[KeyPath, Any]] = [((PARAMETERS, name), given)]
        if is_list and isinstance(given, list):
            forms = [((PARAMETERS, name, index), form) for index, form in enumerate(given)]
        items = []
        for path, form in forms:
            when, methods = as_mapping(as_mapping(form).get("when")), left or takers
            if METHOD in when:
                wanted = when[METHOD] if isinstance(when[METHOD], list) else [when[METHOD]]
                for number, method in enumerate(wanted):
                    if method in self._specs.methods and method not in takers:
                        here = (*path, "when", METHOD, *([number] if isinstance(when[METHOD], list) else []))
                        law = f"must name a method that takes {name}: {one_of(takers)}"
                        self._document.fault(here, f"{law}, but got {shown(method)}.")
                asked = tuple(method for method in takers if method in wanted)
                methods = tuple(method for method in asked if method in left) or asked
            items.append(item := _Item(path, form, methods))
            if item.depends_on_method_alone:
                left = tuple(method for method in left if method not in methods)
        return items

    def _check_reach(self, name: str, given: object) -> None:
        """Refuse items behind one that always holds, and a required parameter that some trial would lack."""
        items, path = self._items[name], (PARAMETERS, name)
        for item in items[:-1]:
            if "when" not in item.keys:
                law = "must have `when`, as all but the last of a list: those after it would never be drawn."
                self._document.fault(item.path, law)
        covered = {method for item in items if item.depends_on_method_alone for method in item.methods}
        if uncovered := [method for method in self._specs.required().get(name, ()) if method not in covered]:
            of_methods = f" of {both(uncovered)}" if len(self._specs.methods) > 1 else ""
            why = f"since every trial{of_methods} needs a {name}."
            if items[0].path == path:
                self._document.fault((*path, "when"), f"must stand in a list of forms whose last has no `when`, {why}")
            else:
                self._document.fault(path, f"must end with an item without `when`, {why}")

    def _distribution(self, name: str, item: _Item) -> Distribution | None:
        laws = self._specs.laws(name, item.methods or self._specs.takers(name))
        if not item.methods and len(laws) > 1:
            return None  # whose law it is meant by is not known
        if (law := joint_law(laws)) is None:
            each = "; ".join(f"{self._specs.laws(name, [method])[0]} for {method}" for method in item.methods)
            remedy = "must be declared in a list, an item for each method with `when: {method: ...}`"
            self._document.fault(item.path, f"{remedy}, since its values differ: {each}.")
            return None
        suffix = "" if law in laws else f", as {both(item.methods)} take it"
        return _FormReader(self._document, item.path, law, suffix=suffix).read(item.given)

    def _condition(self, name: str, item: _Item) -> Condition:
        """Return the parameters that an item's `when` asks for, each with the values that it may have."""
        if "when" not in item.keys:
            return ()
        path, given = (*item.path, "when"), item.keys["when"]
        if not isinstance(given, dict) or not given:
            law = "must map parameters to the values they must have"
            self._document.fault(path, f"{law}, but got {shown(given)}.")
            return ()
        conditions = []
        for other, wanted in given.items():
            if other != METHOD and other not in self._items:
                names = [*([METHOD] if len(self._specs.methods) > 1 else []), *self._items]
                law = must_be(other, names, "must name a parameter of this space")
                self._document.fault((*path, other), f"{law}, but got {other!r}.")
            elif other in self._parameters:  # else its own fault is known already
                conditions.append((other, self._wanted(other, wanted, (*path, other))))
                takers = self._specs.takers(other) if other != METHOD else item.methods
                if item.methods and not set(item.methods) & set(takers):  # no trial has both
                    law = f"must name a parameter that trials with {name} have (those of {both(item.methods)})"
                    verb = "takes" if len(takers) == 1 else "take"
                    self._document.fault((*path, other), f"{law}, but only {both(takers)} {verb} {other}.")
        return tuple(conditions)

    def _wanted(self, other: str, wanted: object, path: KeyPath) -> tuple[Scalar, ...]:
        """Return the values of a parameter that a condition asks for."""
        possible, values = self._parameters[other].possible, list[Scalar]()
        if possible is None:
            law = f"must be a parameter with a list of values, but {other} may take any number in a range."
            self._document.fault(path, law)
            return ()
        if wanted == []:
            self._document.fault(path, "must be a value or a list of values, but got an empty list.")
        for index, item in enumerate(wanted if isinstance(wanted, list) else [wanted]):
            here = (*path, index) if isinstance(wanted, list) else path
            laws, errors = self._specs.laws(other, self._specs.takers(other)), list[str]()
            for spec in laws or [method_spec(self._specs.methods)]:  # the one that the value is meant by
                try:
                    value = spec.check(item)
                    break
                except ValueError as error:
                    errors.append(f"{error}, but got {shown(item)}.")
            else:
                self._document.fault(here, errors[0])
                continue
            if (match := next((each for each in possible if spec.same(value, each)), None)) is not None:
                values.append(match)
            else:
                rule = must_be(value, [str(each) for each in possible[:20]], f"must be a value that {other} may have")
                self._document.fault(here, f"{rule}, but got {shown(item)}.")
        return tuple(values)
