"""Conditions that a method implies: parameters that only go with certain values of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from loraxs_search.methods import get_method
from loraxs_search.records import Scalar
from loraxs_search.search_space._distributions import METHOD, Alternative, Condition, Constant, Parameter
from loraxs_search.search_space._document import Document
from loraxs_search.search_space._faults import one_of


def add_implied_conditions(document: Document, parameters: dict[str, Parameter], methods: Sequence[str]) -> None:
    """Add what `Method.only_with` says to the conditions of parameters; a declared one that breaks it is a fault."""
    for method in methods:
        for name, others in get_method(method).only_with.items():
            for other, allowed in others.items():
                takers = parameters[name].methods or methods if name in parameters else ()
                if other in parameters and method in takers:
                    rest = tuple(taker for taker in takers if taker != method)
                    fitted = _Fitted(method, rest, other, parameters[other].possible or (), allowed)
                    _restrict(document, parameters, name, fitted)


class _Fitted:
    """A condition of one method: what another parameter must be, of what it may be.

    Args:
        rest: Other methods of the space that take the parameter too, and do not have the condition.
    """

    def __init__(
        self, method: str, rest: tuple[str, ...], other: str, possible: Sequence[Scalar], allowed: Sequence[Scalar]
    ) -> None:
        self.method, self.rest, self.other, self.possible, self.allowed = method, rest, other, possible, allowed
        self.fitting = tuple(value for value in possible if value in allowed)

    def split(self, alternative: Alternative) -> Iterator[Alternative]:
        """Yield what stands for an alternative without a condition of its own on the other parameter."""
        plain: Condition = tuple(each for each in alternative.when if each[0] != METHOD)
        asked = dict(alternative.when).get(METHOD, (*self.rest, self.method))
        if rest := tuple(name for name in self.rest if name in asked):
            yield replace(alternative, when=(*plain, (METHOD, rest)))
        if self.fitting and self.method in asked:
            own: Condition = ((METHOD, (self.method,)),) if self.rest else ()
            yield replace(alternative, when=(*plain, *own, (self.other, self.fitting)))


def _restrict(document: Document, parameters: dict[str, Parameter], name: str, condition: _Fitted) -> None:
    if len(condition.fitting) == len(condition.possible):
        return
    parameter, alternatives = parameters[name], list[Alternative]()
    decisive = parameters[condition.other].of_method(condition.method, parameters)
    if decisive is None or decisive.may_be_absent:
        law = f"must end with an `else`, or with an item without `when`, since {name} depends on it"
        document.faults.add(("parameters", condition.other), f"{law}.")
        return
    otherwise = () if parameter.otherwise is None else (Alternative(Constant(parameter.otherwise)),)
    for alternative in (*parameter.alternatives, *otherwise):
        given = dict(alternative.when)
        if condition.other not in given:
            alternatives += condition.split(alternative)
        elif set(given[condition.other]) <= set(condition.allowed):
            alternatives.append(alternative)
        else:
            alternatives.clear()
            break
    if not alternatives:
        known, got = (one_of([str(value) for value in values]) for values in (condition.allowed, condition.possible))
        law = f"must be left out unless {condition.other} is one of: {known}"
        document.faults.add(("parameters", name), f"{law}, but {condition.other} may be {got}.")
        return
    parameters[name] = replace(parameter, alternatives=tuple(alternatives), otherwise=None)
