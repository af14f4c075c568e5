"""What is allowed in a space and worth saying once, for people."""

from __future__ import annotations

from collections.abc import Iterator

from loraxs_search.methods import get_method
from loraxs_search.search_space._parameter_specs import both
from loraxs_search.search_space._space import Space


def notes(space: Space) -> tuple[str, ...]:
    """Return what methods ask for, which of them cannot share passes, and what may not be what was meant."""
    return (*_advice(space), *_starting(space), *_alone(space), *_objectives(space))


def _advice(space: Space) -> Iterator[str]:
    for name in space.methods:
        if text := get_method(name).advice:
            yield f"method {name} {text}"


def _starting(space: Space) -> Iterator[str]:
    anew = [name for name in space.methods if not get_method(name).can_start]
    if space.start_from is not None and anew:
        yield f"trials of {both(anew)} do not start from {space.start_from}: they cannot start from an adapter"


def _alone(space: Space) -> Iterator[str]:
    if not space.is_packable or space.search.pack_size == 1:
        return
    parts = {"trials": space.unpackable_methods, "some trials": space.partly_unpackable_methods}
    for which, methods in parts.items():
        if methods:
            named = f"method {methods[0]}" if len(methods) == 1 else f"methods {both(methods)}"
            yield f"{which} of {named} cannot share passes: each trains alone, beside the packs of the others"


def _objectives(space: Space) -> Iterator[str]:
    if space.search.objectives and space.search.scheduler == "asha":
        remedy = "leave search.scheduler out, or write mo-asha, to keep what is good for its size"
        yield f"asha stops trials by {space.task.search_metric} alone, and so the small ones first: {remedy}"
