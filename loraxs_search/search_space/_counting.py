"""What configurations a space holds, conditions included, without listing them one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from loraxs_search.records import Scalar
from loraxs_search.search_space._conditions import drawing_order
from loraxs_search.search_space._distributions import Parameter


def count_configurations(parameters: Mapping[str, Parameter]) -> int | None:
    """Return the number of different params of one method's trials, or None when a parameter is continuous."""
    if any(parameter.size is None for parameter in parameters.values()):
        return None
    return sum(weight for _, weight in _branches(parameters, _mentioned(parameters)))


_LISTED = 64  # numbers that a parameter may be, of which each is looked at where that is asked for


def reachable_shapes(
    parameters: Mapping[str, Parameter], defaults: Mapping[str, Scalar | None], *, ends: bool = True
) -> list[dict[str, Scalar]]:
    """Return the values that these parameters may have together in a trial.

    Args:
        parameters: Of the trials of one method.
        defaults: Each parameter that is asked for, with its value where a trial has none.
        ends: Of numbers only the smallest and the largest; else so only where there are more than 64.
    """
    needed = _with_parents(parameters, tuple(defaults))
    distinct = _mentioned(needed)
    for name in needed.keys() & defaults.keys():
        named = distinct.setdefault(name, set())
        mentioned = set(named)
        for alternative in needed[name].alternatives:
            values = alternative.distribution.values or ()
            others = [value for value in values if value not in mentioned]
            named.update(_ends(others) if ends or len(others) > _LISTED else others)
    shapes: dict[tuple[tuple[str, Scalar], ...], dict[str, Scalar]] = {}
    for params, _ in _branches(needed, distinct):
        # What is missing although its condition holds is between the ends.
        if any(
            name not in params and parameter.chosen(params) is not None
            for name, parameter in needed.items()
            if name in defaults
        ):
            continue
        shape = {name: params.get(name, default) for name, default in defaults.items()}
        known = {name: value for name, value in shape.items() if value is not None}
        shapes.setdefault(tuple(known.items()), known)
    return list(shapes.values())


def _ends(values: Sequence[Scalar]) -> Iterable[Scalar]:
    numbers = [value for value in values if isinstance(value, int | float)]
    return (min(numbers), max(numbers)) if numbers else values


def _branches(
    parameters: Mapping[str, Parameter], distinct: Mapping[str, set[Scalar]]
) -> Iterator[tuple[dict[str, Scalar], int]]:
    """Yield each way in which conditions can fall, with the number of configurations that fall so.

    A parameter branches into its distinct values and one branch, in which it is not listed, for all its others: an
    integer range of thousands costs as much as the few values that conditions mention.
    """
    branches: list[tuple[dict[str, Scalar], int]] = [({}, 1)]
    for name in drawing_order(parameters.values()):
        parameter, grown = parameters[name], []
        for params, weight in branches:
            index = parameter.chosen(params)
            if index is None:
                known = {} if parameter.otherwise is None else {name: parameter.otherwise}
                grown.append((params | known, weight))
                continue
            distribution = parameter.alternatives[index].distribution
            values = distribution.values or ()
            named = [value for value in sorted(distinct.get(name, ()), key=str) if value in values]
            grown += [(params | {name: value}, weight) for value in named]
            others = (distribution.size or 1) - len(named)
            if others:
                grown.append((params, weight * others))
        branches = grown
    yield from branches


def _mentioned(parameters: Mapping[str, Parameter]) -> dict[str, set[Scalar]]:
    """The values of each parameter that some condition asks for."""
    mentioned: dict[str, set[Scalar]] = {}
    for parameter in parameters.values():
        for alternative in parameter.alternatives:
            for other, values in alternative.when:
                mentioned.setdefault(other, set()).update(values)
    return mentioned


def _with_parents(parameters: Mapping[str, Parameter], names: tuple[str, ...]) -> dict[str, Parameter]:
    needed: dict[str, Parameter] = {}
    waiting = [name for name in names if name in parameters]
    while waiting:
        name = waiting.pop()
        needed[name] = parameters[name]
        waiting += [other for other in parameters[name].parents() if other not in needed]
    return needed
