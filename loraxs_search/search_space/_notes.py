"""What is allowed in a space and worth saying once, for people."""

from __future__ import annotations

from collections.abc import Iterator

from loraxs_search.methods import get_method
from loraxs_search.search_space._parameter_specs import both
from loraxs_search.search_space._space import Space


def notes(space: Space) -> tuple[str, ...]:
    """Return what methods ask for, which of them cannot share passes, and what may not be what was meant."""
    return (*_advice(space), *_alone(space), *_objectives(space))


def _advice(space: Space) -> Iterator[str]:
    for name in space.methods:
        if text := get_method(name).advice:
            yield f"method {name} {text}"


def _alone(space: Space) -> Iterator[str]:
    alone = space.unpackable_methods
    if alone and space.is_packable and space.search.pack_size != 1:
        which = f"method {alone[0]}" if len(alone) == 1 else f"methods {both(alone)}"
        yield f"trials of {which} cannot share passes: each trains alone, beside the packs of the others"


def _objectives(space: Space) -> Iterator[str]:
    if space.search.objectives and space.search.scheduler == "asha":
        remedy = "leave search.scheduler out, or write mo-asha, to keep what is good for its size"
        yield f"asha stops trials by {space.task.search_metric} alone, and so the small ones first: {remedy}"
