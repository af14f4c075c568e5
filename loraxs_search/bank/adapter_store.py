"""The adapters that a bank holds: their names, the order of their last use, and where their numbers are."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from loraxs_search.errors import UsageError
from loraxs_search.methods.loraxs import FactorKey
from loraxs_search.records.task import Task, TaskModel


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
    def cores(self) -> dict[str, tuple[int, FactorKey, int]]:
        """By module, rank, factors and start of its C (r, r): R multiplied by its scale and singular values."""
        starts = accumulate((rank * rank for _, rank, _ in self.modules), initial=0)
        return {name: (rank, key, start) for (name, rank, key), start in zip(self.modules, starts, strict=False)}

    @cached_property
    def head_slices(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Head parameter name to its start and shape."""
        first = sum(rank * rank for _, rank, _ in self.modules)
        starts = accumulate((prod(shape) for _, shape in self.head), initial=first)
        return {name: (start, shape) for (name, shape), start in zip(self.head, starts, strict=False)}

    @cached_property
    def width(self) -> int:
        """Length of a vector."""
        return sum(rank * rank for _, rank, _ in self.modules) + sum(prod(shape) for _, shape in self.head)

    @cached_property
    def sort_key(self) -> str:
        """Rows of a batch are sorted by this, so that those of like modules and ranks are neighbours."""
        return repr((self.modules, self.num_labels, self.head))

    def core(self, vectors: Tensor, module: str) -> Tensor:
        """Return C of a module, shape (n, r, r), a view of vectors (n, width)."""
        rank, _, start = self.cores[module]
        return _block(vectors, start, (rank, rank))

    def head_parameters(self, vectors: Tensor, module: str) -> dict[str, Tensor]:
        """Return a head module's stored parameters by their own names, each (n, *shape), views of vectors."""
        prefix = f"{module}."
        return {
            name.removeprefix(prefix): _block(vectors, start, shape)
            for name, (start, shape) in self.head_slices.items()
            if name.startswith(prefix)
        }

    def vectors(
        self, cores: Mapping[str, Tensor], head: Mapping[str, Tensor], num: int, device: torch.device
    ) -> Tensor:
        """Return `num` vectors (num, width), float32, of C (num, r, r) by module and head parameters by full name."""
        vectors = torch.empty(num, self.width, device=device)
        for name in self.cores:
            self.core(vectors, name).copy_(cores[name])
        for name, (start, shape) in self.head_slices.items():
            _block(vectors, start, shape).copy_(head[name])
        return vectors


def _block(vectors: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
    """Return the numbers from `start` on of each vector in a shape, (n, *shape), a view."""
    return vectors[:, start : start + prod(shape)].view(len(vectors), *shape)


_SLAB_BYTES = 1 << 26  # limit of a slab, so that little memory stays unused when vectors are removed
_GROWTH = 20  # a new slab has this fraction of the vectors held, so that little is allocated ahead


class VectorPool:
    """Holds vectors at positions 0..n-1 without gaps; unused memory is a twentieth of theirs, or one slab of 64 MiB.

    Args:
        width: Numbers in a vector.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._width, self._device = max(1, width), device
        self._slabs: list[Tensor] = []  # each (vectors, width)
        self._starts: list[int] = []
        self._len = 0

    @property
    def allocated_bytes(self) -> int:
        """Allocated memory, free space for new vectors included."""
        return sum(slab.nbytes for slab in self._slabs)

    def append(self, vectors: Tensor) -> range:
        """Add vectors (n, width) at the end and return their positions."""
        first, done = self._len, 0
        while done < len(vectors):
            capacity = self._starts[-1] + len(self._slabs[-1]) if self._slabs else 0
            if self._len == capacity:
                most = max(1, _SLAB_BYTES // (4 * self._width))
                size = min(most, max(len(vectors) - done, self._len // _GROWTH))
                self._starts.append(capacity)
                self._slabs.append(torch.empty(size, self._width, device=self._device))
            slab, at = self._locate(self._len)
            count = min(len(vectors) - done, len(slab) - at)
            slab[at : at + count] = vectors[done : done + count]
            self._len, done = self._len + count, done + count
        return range(first, self._len)

    def remove(self, position: int) -> int:
        """Remove a vector; the last one moves to its position. Return the last one's position, which is now free."""
        last = self._len - 1
        if position != last:
            (slab, at), (last_slab, last_at) = self._locate(position), self._locate(last)
            slab[at] = last_slab[last_at]
        self._len = last
        if self._slabs and self._len <= self._starts[-1]:
            self._slabs.pop()
            self._starts.pop()
        return last

    def gather(self, positions: Sequence[int]) -> Tensor:
        """Return copies of the vectors at these positions, shape (n, width)."""
        if len(self._slabs) == 1:
            return self._slabs[0].index_select(0, torch.tensor(positions, device=self._device))
        return torch.stack([slab[at] for slab, at in map(self._locate, positions)])

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _locate(self, position: int) -> tuple[Tensor, int]:
        index = bisect_right(self._starts, position) - 1
        return self._slabs[index], position - self._starts[index]


_MANY = 10_000  # with more names, the nearest is not searched


@dataclass(eq=False)
class _LayoutGroup:
    """The adapters of one layout.

    Args:
        names: The adapter at each position of the pool.
        rank: Position among the groups when rows are sorted.
    """

    layout: Layout
    pool: VectorPool
    names: list[str] = field(default_factory=list)
    rank: int = 0


@dataclass(slots=True, eq=False)
class _Entry:
    group: _LayoutGroup
    position: int
    task: Task


@dataclass(frozen=True)
class Part:
    """Rows that are computed side by side: those of one layout, or those that name no adapter.

    Args:
        rows: Indices into the batch.
        vectors: Shape (rows, width), or (1, width) where all name the same adapter.
    """

    rows: tuple[int, ...]
    layout: Layout | None
    vectors: Tensor


class AdapterStore:
    """Adapters by name under a limit of bytes. One caller at a time.

    Args:
        max_bytes: Limit on the adapters' numbers; None means no limit.
    """

    def __init__(self, max_bytes: int | None, device: torch.device) -> None:
        self._max_bytes, self._device = max_bytes, device
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._groups: dict[Layout, _LayoutGroup] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """All names, least recently used first."""
        return list(self._entries)

    @property
    def allocated_bytes(self) -> int:
        """Allocated memory, free space for new adapters included."""
        return sum(group.pool.allocated_bytes for group in self._groups.values())

    def task(self, name: str) -> Task:
        """Return the task of an adapter."""
        return self._entry(name).task

    def free_space(self, layout: Layout, names: Sequence[str]) -> None:
        """Drop the adapters of these names, and then the least recently used, until `names` adapters of a layout fit.

        Raises:
            UsageError: they would not fit into an empty store; nothing is dropped.
        """
        wanted = 4 * layout.width * len(names)
        if self._max_bytes is not None and wanted > self._max_bytes:
            raise UsageError(
                f"`max_bytes` must hold what is loaded at once, but {len(names)} adapters take {wanted:,} bytes "
                f"of {self._max_bytes:,}.",
                hint="raise max_bytes, or load fewer at a time",
            )
        for name in names:
            if name in self._entries:
                self.drop(name)
        while self._max_bytes is not None and self.num_bytes + wanted > self._max_bytes:
            self.drop(next(iter(self._entries)))

    def put(self, layout: Layout, names: Sequence[str], vectors: Tensor, task: Task) -> None:
        """Add adapters under free names, as the most recently used; vectors (n, width)."""
        if layout not in self._groups:
            self._groups[layout] = _LayoutGroup(layout, VectorPool(layout.width, self._device))
            for rank, known in enumerate(sorted(self._groups.values(), key=lambda group: group.layout.sort_key)):
                known.rank = rank
        group = self._groups[layout]
        with torch.inference_mode():
            positions = group.pool.append(vectors)
        for name, position in zip(names, positions, strict=True):
            self._entries[name] = _Entry(group, position, task)
        group.names.extend(names)
        self.num_bytes += 4 * layout.width * len(names)

    def drop(self, name: str) -> None:
        """Remove an adapter.

        Raises:
            UsageError: there is none of this name.
        """
        entry = self._entry(name)
        group = entry.group
        with torch.inference_mode():
            last = group.pool.remove(entry.position)
        moved = group.names.pop()
        if last != entry.position:
            group.names[entry.position] = moved
            self._entries[moved].position = entry.position
        del self._entries[name]
        self.num_bytes -= 4 * group.layout.width

    def take(self, names: Sequence[str | None]) -> list[Part]:
        """Return copies of the vectors of these adapters, rows of one layout together; each counts as used.

        Raises:
            UsageError: there is none of a name.
        """
        entries = {name: self._entry(name) for name in dict.fromkeys(names) if name is not None}
        for used in entries:
            self._entries.move_to_end(used)
        rows_of: dict[_LayoutGroup, list[int]] = {}
        for row, name in enumerate(names):
            if name is not None:
                rows_of.setdefault(entries[name].group, []).append(row)
        parts = []
        for group in sorted(rows_of, key=lambda group: group.rank):
            positions = [entries[str(names[row])].position for row in rows_of[group]]
            with torch.inference_mode():
                vectors = group.pool.gather(positions[:1] if len(set(positions)) == 1 else positions)
            parts.append(Part(tuple(rows_of[group]), group.layout, vectors))
        if bare := tuple(row for row, name in enumerate(names) if name is None):
            parts.append(Part(bare, None, torch.empty(0, device=self._device)))
        return parts

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            near = get_close_matches(str(name), self._entries) if len(self) <= _MANY else ()
            nearest = f", the nearest being {', '.join(near)}" if near else ""
            raise UsageError(
                f"A row must name an adapter that is in the bank, but {name!r} is none of {len(self)}{nearest}.",
                hint="load it first; `max_bytes` may have evicted it",
            ) from None
