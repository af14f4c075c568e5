"""A parameter as it is declared: one form, or a list of forms for different conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loraxs_search.records import Scalar
from loraxs_search.search_space._declaration import Declaration
from loraxs_search.search_space._distributions import METHOD, Alternative, Distribution, Parameter
from loraxs_search.search_space._document import Document
from loraxs_search.search_space._faults import KeyPath, one_of, shown
from loraxs_search.search_space._parameter_specs import SpaceSpecs, both, joint_law

PARAMETERS = "parameters"


@dataclass(frozen=True)
class Item:
    """One of the forms that a parameter is declared by.

    Args:
        methods: To whose trials it may apply: they take the parameter, and no item before it is for all of them. None
            where there is a fault.
    """

    path: KeyPath
    given: object
    methods: tuple[str, ...]

    @property
    def keys(self) -> Mapping[str, Any]:
        return self.given if isinstance(self.given, dict) else {}

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
        self.items: list[Item] = []
        left = self.takers
        for index, form in forms:
            item = self._item(index, form, left)
            self.items.append(item)
            if item.depends_on_method_alone:
                left = tuple(method for method in left if method not in item.methods)

    def read(self) -> Parameter | None:
        """Return the parameter without conditions; None where there is a fault, which the document has then."""
        self._check_else()
        self._check_reached()
        self._check_always_there()
        distributions = [self._distribution(item) for item in self.items]
        otherwise = self._otherwise()
        alternatives = tuple(Alternative(each) for each in distributions if each is not None)
        if len(alternatives) < len(self.items):
            return None
        methods = () if self.takers == self._specs.methods else self.takers
        return Parameter(self.name, alternatives, otherwise, methods)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _item(self, index: int | None, given: object, left: tuple[str, ...]) -> Item:
        path = self._path if index is None else (*self._path, index)
        when = given.get("when") if isinstance(given, dict) else None
        if not isinstance(when, dict) or METHOD not in when:
            return Item(path, given, left or self.takers)
        wanted = when[METHOD] if isinstance(when[METHOD], list) else [when[METHOD]]
        for number, method in enumerate(wanted):
            if method in self._specs.methods and method not in self.takers:
                here = (*path, "when", METHOD, *([number] if isinstance(when[METHOD], list) else []))
                law = f"must name a method that takes {self.name}: {one_of(self.takers)}"
                self._document.faults.add(here, f"{law}, but got {shown(method)}.")
        asked = tuple(method for method in self.takers if method in wanted)
        return Item(path, given, tuple(method for method in asked if method in left) or asked)

    def _distribution(self, item: Item) -> Distribution | None:
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

    def _otherwise(self) -> Scalar | None:
        first = self.items[0]
        if self._is_list or "else" not in first.keys:
            return None
        declaration = self._declaration(first.path, self.takers)
        return None if declaration is None else declaration.value(first.keys["else"], ("else",))

    def _check_else(self) -> None:
        for item in self.items:
            if "else" in item.keys and self._is_list:
                self._fault((*item.path, "else"), "must not stand in a list: make the value its last item.")
            elif "else" in item.keys and "when" not in item.keys:
                law = "must stand beside `when`: it is the value when the condition does not hold."
                self._fault((*item.path, "else"), law)

    def _check_reached(self) -> None:
        for item in self.items[:-1]:
            if "when" not in item.keys:
                law = "must have `when`, as all but the last of a list: those after it would never be drawn."
                self._fault(item.path, law)

    def _check_always_there(self) -> None:
        if "else" in self.items[0].keys:
            return
        uncovered = [method for method in self._specs.required().get(self.name, ()) if not self._covers(method)]
        if not uncovered:
            return
        of_methods = f" of {both(uncovered)}" if len(self._specs.methods) > 1 else ""
        why = f"since every trial{of_methods} needs a {self.name}."
        if self._is_list:
            self._fault(self._path, f"must end with an item without `when`, {why}")
        else:
            self._fault((*self._path, "when"), f"must have `else: value` beside it, {why}")

    def _covers(self, method: str) -> bool:
        return any(item.depends_on_method_alone and method in item.methods for item in self.items)

    def _fault(self, path: KeyPath, message: str) -> None:
        self._document.faults.add(path, message)


def conditioned(declared: Mapping[str, DeclaredParameter]) -> Iterator[tuple[DeclaredParameter, int, Item]]:
    """Yield every item with a condition, and which item of its parameter it is."""
    for parameter in declared.values():
        for index, item in enumerate(parameter.items):
            if "when" in item.keys:
                yield parameter, index, item
