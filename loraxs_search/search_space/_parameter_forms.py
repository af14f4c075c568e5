"""A parameter as it is declared: a value, a mapping with one of the forms, or a list of these under conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from loraxs_search.errors import asking, meant, must_be, one_of
from loraxs_search.methods import ParameterSpec
from loraxs_search.records import Scalar
from loraxs_search.search_space._distributions import (
    METHOD,
    Alternative,
    Choice,
    Constant,
    Distribution,
    Floats,
    Integers,
    Parameter,
)
from loraxs_search.search_space._document import Document, KeyPath, as_mapping, as_written, shown
from loraxs_search.search_space._parameter_specs import SpaceSpecs, both, joint_law

_FORMS = ("value", "choice", "uniform", "log_uniform", "int")
_OPTIONS = {"uniform": ("step",), "int": ("step", "log")}
_MAX_STEPS = 10**9  # decimals of 28 digits divide exactly far beyond it


class Declaration:
    """Reads one value form; `None` from a method means that the fault is already in the document.

    Args:
        path: Where it stands.
        with_conditions: Whether `when` may stand beside the form.
        suffix: Follows a fault: for which methods the law is.
    """

    def __init__(
        self, document: Document, path: KeyPath, spec: ParameterSpec, *, with_conditions: bool = True, suffix: str = ""
    ) -> None:
        self._document, self._path, self._spec, self._suffix = document, path, spec, suffix
        self._extra = ("when",) if with_conditions else ()

    def read(self, declared: object) -> Distribution | None:
        """Return what may be drawn."""
        if isinstance(declared, list) and self._spec.kind != "modules":
            self._fault((), f"must be a value or a form, but got a list; write {{choice: {shown(declared)}}}.")
            return None
        if not isinstance(declared, dict):
            value = self.value(declared, ())
            return None if value is None else Constant(value)
        return self._distribution(declared)

    def _distribution(self, declared: dict[str, Any]) -> Distribution | None:
        forms = [form for form in _FORMS if form in declared]
        if len(forms) != 1:
            got = f"{len(forms)}: {one_of(forms)}" if forms else one_of(declared) or "none"
            slip = next((key for key in declared if key not in forms and meant(key, _FORMS)), "")
            law = asking(f"must have exactly one of: {one_of(_FORMS)}", slip, _FORMS)
            self._fault((), f"{law}, but got {got}.")
            return None
        form = forms[0]
        known = (form, *_OPTIONS.get(form, ()), *self._extra)
        unknown = [key for key in declared if key not in known]
        for key in unknown:
            self._fault((key,), f"{must_be(key, known)}, but got {key!r}.")
        readers: dict[str, Callable[[dict[str, Any]], Distribution | None]] = {
            "value": self._constant,
            "choice": self._choice,
            "uniform": self._floats,
            "log_uniform": self._floats,
            "int": self._integers,
        }
        return readers[form](declared)

    def _constant(self, declared: dict[str, Any]) -> Distribution | None:
        value = self.value(declared["value"], ("value",))
        return None if value is None else Constant(value)

    def _choice(self, declared: dict[str, Any]) -> Distribution | None:
        items = declared["choice"]
        if not isinstance(items, list) or not items:
            self._fault(("choice",), f"must be a list of at least one value, but got {shown(items)}.")
            return None
        values = [self.value(item, ("choice", index)) for index, item in enumerate(items)]
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
        low, high = (self.value(bound, (form, index)) for index, bound in enumerate(given))
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
        if high - low > by * _MAX_STEPS:
            self._fault(("step",), f"must divide {low} to {high} into at most {_MAX_STEPS:,} steps, but got {step}.")
            return None
        if (high - low) % by:
            last = low + (high - low) // by * by
            self._fault(
                ("step",),
                f"must lead from {low} to {high} exactly, but got {step}; nearest: high {last} or {last + by}.",
            )
            return None
        return float(step)

    def value(self, value: object, inside: KeyPath) -> Scalar | None:
        """Return a value in the parameter's own type."""
        try:
            return self._spec.check(value)
        except ValueError as error:
            got = as_written(self._document, (*self._path, *inside), value)
            self._fault(inside, f"{error}, but got {got}{self._suffix}.")
            return None

    def _fault(self, inside: KeyPath, message: str) -> None:
        self._document.faults.add((*self._path, *inside), message)


PARAMETERS = "parameters"


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


class DeclaredParameter:
    """Reads a parameter of the section but for its conditions, which may name parameters that come later.

    Args:
        given: What stands at the name.
    """

    def __init__(self, document: Document, name: str, given: object, specs: SpaceSpecs) -> None:
        self._document, self.name, self._specs = document, name, specs
        self._path: KeyPath = (PARAMETERS, name)
        self.takers = specs.takers(name)
        self._is_list = isinstance(given, list) and any(isinstance(item, dict) for item in given)
        forms = enumerate(given) if isinstance(given, list) and self._is_list else [(None, given)]
        self.items: list[_Item] = []
        left = self.takers
        for index, form in forms:
            item = self._item(index, form, left)
            self.items.append(item)
            if item.depends_on_method_alone:
                left = tuple(method for method in left if method not in item.methods)

    def read(self) -> Parameter | None:
        """Return the parameter without conditions; None if there is a fault, which the document has then."""
        self._check_reached()
        self._check_always_there()
        distributions = [self._distribution(item) for item in self.items]
        alternatives = tuple(Alternative(each) for each in distributions if each is not None)
        if len(alternatives) < len(self.items):
            return None
        methods = () if self.takers == self._specs.methods else self.takers
        return Parameter(self.name, alternatives, methods)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _item(self, index: int | None, given: object, left: tuple[str, ...]) -> _Item:
        path = self._path if index is None else (*self._path, index)
        when = as_mapping(given).get("when")
        if not isinstance(when, dict) or METHOD not in when:
            return _Item(path, given, left or self.takers)
        wanted = when[METHOD] if isinstance(when[METHOD], list) else [when[METHOD]]
        for number, method in enumerate(wanted):
            if method in self._specs.methods and method not in self.takers:
                here = (*path, "when", METHOD, *([number] if isinstance(when[METHOD], list) else []))
                law = f"must name a method that takes {self.name}: {one_of(self.takers)}"
                self._document.faults.add(here, f"{law}, but got {shown(method)}.")
        asked = tuple(method for method in self.takers if method in wanted)
        return _Item(path, given, tuple(method for method in asked if method in left) or asked)

    def _distribution(self, item: _Item) -> Distribution | None:
        declaration = self._declaration(item.path, item.methods)
        return None if declaration is None else declaration.read(item.given)

    def _declaration(self, path: KeyPath, methods: tuple[str, ...]) -> Declaration | None:
        laws = self._specs.laws(self.name, methods or self.takers)
        if not methods and len(laws) > 1:
            return None  # whose law it is meant by is not known
        law = joint_law(laws)
        if law is None:
            each = "; ".join(f"{self._specs.laws(self.name, [method])[0]} for {method}" for method in methods)
            remedy = "must be declared in a list, an item for each method with `when: {method: ...}`"
            self._document.faults.add(path, f"{remedy}, since its values differ: {each}.")
            return None
        return Declaration(self._document, path, law, suffix="" if law in laws else f", as {both(methods)} take it")

    def _check_reached(self) -> None:
        for item in self.items[:-1]:
            if "when" not in item.keys:
                law = "must have `when`, as all but the last of a list: those after it would never be drawn."
                self._fault(item.path, law)

    def _check_always_there(self) -> None:
        uncovered = [method for method in self._specs.required().get(self.name, ()) if not self._covers(method)]
        if not uncovered:
            return
        of_methods = f" of {both(uncovered)}" if len(self._specs.methods) > 1 else ""
        why = f"since every trial{of_methods} needs a {self.name}."
        if self._is_list:
            self._fault(self._path, f"must end with an item without `when`, {why}")
        else:
            self._fault((*self._path, "when"), f"must stand in a list of forms whose last has no `when`, {why}")

    def _covers(self, method: str) -> bool:
        return any(item.depends_on_method_alone and method in item.methods for item in self.items)

    def _fault(self, path: KeyPath, message: str) -> None:
        self._document.faults.add(path, message)
