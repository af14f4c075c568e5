"""One value form of a parameter, as it stands in YAML: a value, or a mapping with one of the forms."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from loraxs_search.errors import meant
from loraxs_search.methods import ParameterSpec
from loraxs_search.records import Scalar
from loraxs_search.search_space._distributions import Choice, Constant, Distribution, Floats, Integers
from loraxs_search.search_space._document import Document, as_written
from loraxs_search.search_space._faults import KeyPath, asking, must_be, one_of, shown

_FORMS = ("value", "choice", "uniform", "log_uniform", "int")
_OPTIONS = {"uniform": ("step",), "int": ("step", "log")}
_MAX_STEPS = 10**9  # decimals of 28 digits divide exactly far beyond it


class Declaration:
    """Reads one value form; `None` from a method means that the fault is already in the document.

    Args:
        path: Where it stands.
        with_conditions: Whether `when` and `else` may stand beside the form.
        suffix: Follows a fault: for which methods the law is.
    """

    def __init__(
        self, document: Document, path: KeyPath, spec: ParameterSpec, *, with_conditions: bool = True, suffix: str = ""
    ) -> None:
        self._document, self._path, self._spec, self._suffix = document, path, spec, suffix
        self._extra = ("when", "else") if with_conditions else ()

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
