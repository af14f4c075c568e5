"""What a space amounts to on a given base model: for `check`, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

from loraxs_search.records import AdapterSize, Hyperparameters, LinearModule
from loraxs_search.search_space._counting import reachable_shapes
from loraxs_search.search_space._modules import resolve_modules
from loraxs_search.search_space._space import DEFAULT_TARGET_MODULES, Space, check_rank

Shapes = Mapping[str, tuple[int, ...]]  # of parameters, by full name
BYTES_PER_PARAMETER = 4  # R and head are stored in float32


@dataclass(frozen=True)
class GroupDescription:
    """A module group expression and the full names it resolves to, in model order."""

    expression: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class ShapeDescription:
    """An adapter of the space: its rank, its module group, its head (`full` or `output`), and what would be stored."""

    rank: int
    target_modules: str
    head: str
    size: AdapterSize


@dataclass(frozen=True)
class SpaceDescription:
    """A space's size.

    Args:
        combinations: How many different params there are; None when a parameter is continuous.
        groups: Every module group that a trial may have.
        smallest: The adapter with the fewest bytes that a trial may have.
        largest: The one with the most.
    """

    combinations: int | None
    groups: tuple[GroupDescription, ...]
    smallest: ShapeDescription
    largest: ShapeDescription


def describe(
    space: Space, modules: Sequence[LinearModule], *, heads: Mapping[str, Shapes] = MappingProxyType({})
) -> SpaceDescription:
    """Return what a space amounts to on a base model with these linear layers.

    R parameters = number of modules * rank^2; stored bytes are those of the adapter's file, names and shapes included.

    Args:
        heads: `full` and `output` to full name and shape of the head's parameters that are trained.
    Raises:
        TargetModulesError: a module group matches nothing.
        RankError: a rank that a trial may have is above the smaller side of one of its modules.
    """
    groups = {expression: resolve_modules(expression, modules) for expression in space.target_groups()}
    shapes = []
    for rank, expression, head in reachable_shapes(space.parameters, DEFAULT_TARGET_MODULES, Hyperparameters.head):
        check_rank(rank, groups[expression], modules)
        size = _size(rank, groups[expression], heads.get(head, {}))
        shapes.append(ShapeDescription(rank, expression, head, size))
    return SpaceDescription(
        combinations=space.grid_size(),
        groups=tuple(GroupDescription(expression, names) for expression, names in groups.items()),
        smallest=min(shapes, key=lambda shape: shape.size.stored_bytes),
        largest=max(shapes, key=lambda shape: shape.size.stored_bytes),
    )


def _size(rank: int, names: Sequence[str], head: Shapes) -> AdapterSize:
    tensors = {f"{name}.loraxs_R": (rank, rank) for name in names} | dict(head)
    return AdapterSize(len(names) * rank**2, sum(map(prod, head.values())), file_bytes(tensors))


def file_bytes(tensors: Shapes) -> int:
    """Return the length of a PEFT adapter's safetensors file with these float32 tensors, by name in the base model.

    8 bytes + a JSON header, padded to 8, that names each tensor in alphabetical order + 4 bytes a number. With a small
    rank the header is a good part of the file.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + BYTES_PER_PARAMETER * prod(tensors[name])
        entry = {"dtype": "F32", "shape": list(tensors[name]), "data_offsets": [start, end]}
        header[f"base_model.model.{name}"] = entry
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + end
