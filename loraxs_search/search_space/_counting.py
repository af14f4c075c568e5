"""What configurations a space holds, conditions included, without listing them one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loraxs_search.records import Scalar
from loraxs_search.search_space._conditions import drawing_order
from loraxs_search.search_space._distributions import Parameter


def count_configurations(parameters: Mapping[str, Parameter]) -> int | None:
    """Return the number of different params, or None when a parameter is continuous."""
    if any(parameter.distribution.size is None for parameter in parameters.values()):
        return None
    return sum(weight for _, weight in _branches(parameters, _mentioned(parameters)))


def reachable_shapes(
    parameters: Mapping[str, Parameter], default_group: str, default_head: str
) -> list[tuple[int, str, str]]:
    """Return the (rank, module group, head) triples that a trial may have; of a range of ranks only the ends."""
    needed = _with_parents(parameters, ("rank", "target_modules", "head"))
    told_apart = _mentioned(needed)
    for name in ("target_modules", "head"):
        if name in needed:
            told_apart[name] = set(needed[name].distribution.values or ())
    named = told_apart.setdefault("rank", set())
    rest: list[Any] = [rank for rank in needed["rank"].distribution.values or () if rank not in named]
    named.update((min(rest), max(rest)) if rest else ())
    shapes = (
        (int(params["rank"]), str(params.get("target_modules", default_group)), str(params.get("head", default_head)))
        for params, _ in _branches(needed, told_apart)
        if "rank" in params
    )
    return list(dict.fromkeys(shapes))


def _branches(
    parameters: Mapping[str, Parameter], told_apart: Mapping[str, set[Scalar]]
) -> Iterator[tuple[dict[str, Scalar], int]]:
    """Yield each way in which conditions can fall, with the number of configurations that fall so.

    A parameter branches into its told-apart values and one branch, in which it is not listed, for all its others: an
    integer range of thousands costs as much as the few values that conditions mention.
    """
    branches: list[tuple[dict[str, Scalar], int]] = [({}, 1)]
    for name in drawing_order(parameters.values()):
        parameter, grown = parameters[name], []
        for params, weight in branches:
            if not parameter.present(params):
                known = {} if parameter.otherwise is None else {name: parameter.otherwise}
                grown.append((params | known, weight))
                continue
            values = parameter.distribution.values or ()
            named = [value for value in sorted(told_apart.get(name, ()), key=str) if value in values]
            grown += [(params | {name: value}, weight) for value in named]
            others = (parameter.distribution.size or 1) - len(named)
            if others:
                grown.append((params, weight * others))
        branches = grown
    yield from branches


def _mentioned(parameters: Mapping[str, Parameter]) -> dict[str, set[Scalar]]:
    """The values of each parameter that some condition asks for."""
    mentioned: dict[str, set[Scalar]] = {}
    for parameter in parameters.values():
        for other, values in parameter.when:
            mentioned.setdefault(other, set()).update(values)
    return mentioned


def _with_parents(parameters: Mapping[str, Parameter], names: tuple[str, ...]) -> dict[str, Parameter]:
    needed: dict[str, Parameter] = {}
    waiting = [name for name in names if name in parameters]
    while waiting:
        name = waiting.pop()
        needed[name] = parameters[name]
        waiting += [other for other, _ in parameters[name].when if other not in needed]
    return needed
