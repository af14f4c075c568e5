"""How adapters of one shape are stored: R of each module, then the head, in one flat vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from loraxs_search.errors import IntegrityError
from loraxs_search.methods.loraxs import FactorKey, LoraXSConfig, ModuleSettings
from loraxs_search.records.task import TaskModel


@dataclass(frozen=True)
class _CoreSlice:
    """Where one module's C (r, r) is stored: R multiplied by its scale and singular values."""

    rank: int
    factor_key: FactorKey
    start: int


@dataclass(frozen=True)
class Layout:
    """The shape of an adapter; adapters of one layout are stored side by side, and a batch gathers them at once.

    Scale, sigma and the numbers themselves are not part of it.

    Args:
        modules: Adapted modules with rank and factors, in the order in which they are stored.
        head: Full names and shapes of the head parameters that are stored, after the modules.
        model: How the base is loaded for them, and what their heads read of it.
        identity_layers: Head layers that are the identity.
    """

    modules: tuple[tuple[str, int, FactorKey], ...]
    head: tuple[tuple[str, tuple[int, ...]], ...]
    model: TaskModel
    identity_layers: tuple[str, ...]

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return self.model.num_outputs or 0

    @cached_property
    def cores(self) -> dict[str, _CoreSlice]:
        """Module name to its slice."""
        slices, start = {}, 0
        for name, rank, factor_key in self.modules:
            slices[name] = _CoreSlice(rank, factor_key, start)
            start += rank * rank
        return slices

    @cached_property
    def num_r(self) -> int:
        """Number of elements of R, over all modules."""
        return sum(rank * rank for _, rank, _ in self.modules)

    @cached_property
    def width(self) -> int:
        """Length of a vector."""
        return self.num_r + sum(prod(shape) for _, shape in self.head)

    @cached_property
    def head_slices(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Head parameter name to its start and shape."""
        slices, start = {}, self.num_r
        for name, shape in self.head:
            slices[name] = (start, shape)
            start += prod(shape)
        return slices

    @cached_property
    def sort_key(self) -> str:
        """Rows of a batch are sorted by this, so that those of like modules and ranks are neighbours."""
        return repr((self.modules, self.num_labels, self.head))

    def core(self, vectors: Tensor, module: str) -> Tensor:
        """Return C of a module, shape (n, r, r), a view of vectors (n, width)."""
        core = self.cores[module]
        return _block(vectors, core.start, (core.rank, core.rank))

    def head_parameters(self, vectors: Tensor, module: str) -> dict[str, Tensor]:
        """Return a head module's stored parameters by their own names, each (n, *shape), views of vectors."""
        prefix = f"{module}."
        return {
            name.removeprefix(prefix): _block(vectors, start, shape)
            for name, (start, shape) in self.head_slices.items()
            if name.startswith(prefix)
        }


def make_layout(
    settings: Mapping[str, ModuleSettings], head: Mapping[str, Tensor], config: LoraXSConfig, model: TaskModel
) -> Layout:
    """Return the layout of adapters with these settings and head parameters, the latter (n, *shape)."""
    return Layout(
        tuple((name, s.rank, s.factor_key) for name, s in settings.items()),
        tuple(sorted((name, tuple(value.shape[1:])) for name, value in head.items())),
        replace(model, pooling=config.pooling),
        tuple(config.pass_through),
    )


def check_tensors(layout: Layout, r: Mapping[str, Tensor], head: Mapping[str, Tensor], num: int) -> None:
    """Raise unless there are `num` R of the layout's rank for each module, and as many of each head parameter.

    Raises:
        IntegrityError: a tensor has another shape or type.
    """
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
    expected |= {name: (r[name], (num, core.rank, core.rank)) for name, core in layout.cores.items()}
    expected |= {name: (head[name], (num, *shape)) for name, shape in layout.head}
    for name, (value, shape) in expected.items():
        if tuple(value.shape) != shape or not value.is_floating_point():
            raise IntegrityError(f"{name} must be floating point of shape {shape}, but got {tuple(value.shape)}.")


def fill(
    layout: Layout, cores: Mapping[str, Tensor], head: Mapping[str, Tensor], num: int, device: torch.device
) -> Tensor:
    """Return the vectors (num, width), float32, of C (num, r, r) by module and head parameters by full name."""
    vectors = torch.empty(num, layout.width, device=device)
    for name in layout.cores:
        layout.core(vectors, name).copy_(cores[name])
    for name, (start, shape) in layout.head_slices.items():
        _block(vectors, start, shape).copy_(head[name])
    return vectors


def _block(vectors: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
    """Return the numbers from `start` on of each vector in a shape, (n, *shape), a view."""
    return vectors[:, start : start + prod(shape)].view(len(vectors), *shape)
