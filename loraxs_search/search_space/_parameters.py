"""The `parameters` section: every value form, and the conditions between parameters."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from loraxs_search.methods import ParameterSpec, get_method
from loraxs_search.records import Scalar
from loraxs_search.search_space._conditions import add_implied_conditions, check_conditions
from loraxs_search.search_space._distributions import Choice, Constant, Distribution, Floats, Integers, Parameter
from loraxs_search.search_space._document import Document, as_written
from loraxs_search.search_space._faults import KeyPath, one_of, shown
from loraxs_search.search_space._parameter_specs import parameter_specs, required, unknown_parameter

_FORMS = ("value", "choice", "uniform", "log_uniform", "int")
_OPTIONS = {"uniform": ("step",), "int": ("step", "log")}
_SECTION = "parameters"


def read_parameters(document: Document, section: object, method: str) -> dict[str, Parameter]:
    """Read the section into parameters, in the file's order; faults go to the document.

    Args:
        method: A registered one, whose own parameters the section may have beside those of all.
    """
    if not isinstance(section, dict):
        document.faults.add((_SECTION,), f"must map parameter names to values, but got {shown(section)}.")
        return {}
    specs = parameter_specs(method)
    parameters: dict[str, Parameter] = {}
    for name, declared in section.items():
        if name not in specs:
            document.faults.add((_SECTION, name), unknown_parameter(method, name))
            continue
        parameter = _Declaration(document, name, specs[name], name in required(specs)).read(declared)
        if parameter is not None:
            parameters[name] = parameter
    for name in required(specs):
        if name not in section:
            document.faults.add((_SECTION, name), f"is required: {specs[name]}, or a range of them.")
    check_conditions(document, section, parameters, specs)
    add_implied_conditions(document, parameters, specs, get_method(method).only_with)
    return parameters


class _Declaration:
    """Reads one parameter; `None` from a method means that the fault is already in the document."""

    def __init__(self, document: Document, name: str, spec: ParameterSpec, is_required: bool) -> None:
        self._document = document
        self._spec, self._is_required = spec, is_required
        self._name = name
        self._path: KeyPath = (_SECTION, name)

    def read(self, declared: object) -> Parameter | None:
        if isinstance(declared, list) and self._spec.kind != "modules":
            self._fault((), f"must be a value or a form, but got a list; write {{choice: {shown(declared)}}}.")
            return None
        if not isinstance(declared, dict):
            value = self._value(declared, ())
            return None if value is None else Parameter(self._name, Constant(value))
        distribution = self._distribution(declared)
        if "else" in declared and "when" not in declared:
            self._fault(("else",), "must stand beside `when`: it is the value when the condition does not hold.")
        if "when" in declared and "else" not in declared and self._is_required:
            self._fault(("when",), f"must have `else: value` beside it, since every trial needs a {self._name}.")
        otherwise = self._value(declared["else"], ("else",)) if "else" in declared else None
        if distribution is None:
            return None
        return Parameter(self._name, distribution, otherwise=otherwise)

    def _distribution(self, declared: dict[str, Any]) -> Distribution | None:
        forms = [form for form in _FORMS if form in declared]
        if len(forms) != 1:
            got = f"{len(forms)}: {one_of(forms)}" if forms else "none"
            self._fault((), f"must have exactly one of: {one_of(_FORMS)}, but got {got}.")
            return None
        form = forms[0]
        known = (form, *_OPTIONS.get(form, ()), "when", "else")
        unknown = [key for key in declared if key not in known]
        for key in unknown:
            self._fault((key,), f"must be one of: {one_of(known, key)}, but got {key!r}.")
        readers: dict[str, Callable[[dict[str, Any]], Distribution | None]] = {
            "value": self._constant,
            "choice": self._choice,
            "uniform": self._floats,
            "log_uniform": self._floats,
            "int": self._integers,
        }
        return readers[form](declared)

    def _constant(self, declared: dict[str, Any]) -> Distribution | None:
        value = self._value(declared["value"], ("value",))
        return None if value is None else Constant(value)

    def _choice(self, declared: dict[str, Any]) -> Distribution | None:
        items = declared["choice"]
        if not isinstance(items, list) or not items:
            self._fault(("choice",), f"must be a list of at least one value, but got {shown(items)}.")
            return None
        values = [self._value(item, ("choice", index)) for index, item in enumerate(items)]
        seen: list[Scalar] = []
        for index, value in enumerate(values):
            if value is not None and any(self._spec.same(value, other) for other in seen):
                self._fault(("choice", index), f"must list each value once, but {shown(items[index])} came before.")
            elif value is not None:
                seen.append(value)
        return Choice(tuple(seen)) if len(seen) == len(values) else None

    def _floats(self, declared: dict[str, Any]) -> Distribution | None:
        log = "log_uniform" in declared
        form = "log_uniform" if log else "uniform"
        if self._spec.kind != "float":
            remedy = "int or choice" if self._spec.kind == "int" else "choice"
            self._fault((form,), f"must be {self._spec}, so {form} does not fit; use {remedy}.")
            return None
        bounds = self._bounds(declared[form], form, log=log)
        step = None if log else self._step(declared.get("step"), bounds)
        return None if bounds is None else Floats(float(bounds[0]), float(bounds[1]), step=step, log=log)

    def _integers(self, declared: dict[str, Any]) -> Distribution | None:
        if self._spec.kind != "int":
            remedy = "uniform (with step) or choice" if self._spec.kind == "float" else "choice"
            self._fault(("int",), f"must be {self._spec}, so int does not fit; use {remedy}.")
            return None
        log = declared.get("log", False)
        if not isinstance(log, bool):
            self._fault(("log",), f"must be true or false, but got {shown(log)}.")
            return None
        bounds = self._bounds(declared["int"], "int", log=log)
        step = self._step(declared.get("step"), bounds)
        if log and step not in (None, 1):
            self._fault(("step",), "must be left out beside log: true, where steps grow with the value.")
            return None
        return None if bounds is None else Integers(int(bounds[0]), int(bounds[1]), step=int(step or 1), log=log)

    def _bounds(self, given: object, form: str, *, log: bool) -> tuple[float, float] | None:
        if not isinstance(given, list) or len(given) != 2:
            self._fault((form,), f"must be [low, high], but got {shown(given)}.")
            return None
        low, high = (self._value(bound, (form, index)) for index, bound in enumerate(given))
        if not isinstance(low, int | float) or not isinstance(high, int | float):
            return None
        if low >= high:
            self._fault((form,), f"must have low < high, but got {shown(given)}; one value is a constant.")
            return None
        if log and low <= 0:
            self._fault((form, 0), f"must be above 0, as logarithms need, but got {shown(low)}.")
            return None
        return low, high

    def _step(self, given: object, bounds: tuple[float, float] | None) -> float | None:
        if given is None:
            return None
        spec = ParameterSpec(self._spec.kind, low=0, above=True)
        try:
            step = spec.check(given)
        except ValueError as error:
            self._fault(("step",), f"{error}, but got {shown(given)}.")
            return None
        if bounds is None or isinstance(step, str):
            return None
        low, high, by = (Decimal(str(number)) for number in (*bounds, step))
        if (high - low) % by:
            last = low + (high - low) // by * by
            self._fault(
                ("step",),
                f"must lead from {low} to {high} exactly, but got {step}; nearest: high {last} or {last + by}.",
            )
            return None
        return float(step)

    def _value(self, value: object, inside: KeyPath) -> Scalar | None:
        try:
            return self._spec.check(value)
        except ValueError as error:
            got = as_written(self._document, (*self._path, *inside), value)
            self._fault(inside, f"{error}, but got {got}.")
            return None

    def _fault(self, inside: KeyPath, message: str) -> None:
        self._document.faults.add((*self._path, *inside), message)
