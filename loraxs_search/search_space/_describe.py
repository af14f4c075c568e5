"""What a space amounts to on a given base model: for `check`, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraxs_search.records import AdapterSize, LinearModule
from loraxs_search.search_space._counting import reachable_shapes
from loraxs_search.search_space._modules import resolve_modules
from loraxs_search.search_space._space import DEFAULT_TARGET_MODULES, Space, check_rank

BYTES_PER_PARAMETER = 4  # R and head are stored in float32


@dataclass(frozen=True)
class GroupDescription:
    """A module group expression and the full names it resolves to, in model order."""

    expression: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class ShapeDescription:
    """An adapter of the space: its rank, its module group, and what would be stored."""

    rank: int
    target_modules: str
    size: AdapterSize


@dataclass(frozen=True)
class SpaceDescription:
    """A space's size.

    Args:
        combinations: How many different params there are; None when a parameter is continuous.
        groups: Every module group that a trial may have.
        smallest: The adapter with the fewest parameters that a trial may have.
        largest: The one with the most.
    """

    combinations: int | None
    groups: tuple[GroupDescription, ...]
    smallest: ShapeDescription
    largest: ShapeDescription


def describe(space: Space, modules: Sequence[LinearModule], *, head_parameters: int = 0) -> SpaceDescription:
    """Return what a space amounts to on a base model with these linear layers.

    R parameters = number of modules * rank^2; stored bytes = 4 * (R + head).

    Args:
        head_parameters: Parameters of the trained head, the same for every trial.
    Raises:
        TargetModulesError: a module group matches nothing.
        RankError: a rank that a trial may have is above the smaller side of one of its modules.
    """
    groups = {expression: resolve_modules(expression, modules) for expression in space.target_groups()}
    shapes = []
    for rank, expression in reachable_shapes(space.parameters, DEFAULT_TARGET_MODULES):
        check_rank(rank, groups[expression], modules)
        r_parameters = len(groups[expression]) * rank**2
        stored = BYTES_PER_PARAMETER * (r_parameters + head_parameters)
        shapes.append(ShapeDescription(rank, expression, AdapterSize(r_parameters, head_parameters, stored)))
    return SpaceDescription(
        combinations=space.grid_size(),
        groups=tuple(GroupDescription(expression, names) for expression, names in groups.items()),
        smallest=min(shapes, key=lambda shape: shape.size.r_parameters),
        largest=max(shapes, key=lambda shape: shape.size.r_parameters),
    )
