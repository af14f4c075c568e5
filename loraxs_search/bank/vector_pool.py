"""Vectors of one length, kept dense when they are added and removed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

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
            if self._len == self._capacity:
                self._add_slab(len(vectors) - done)
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
    @property
    def _capacity(self) -> int:
        return self._starts[-1] + len(self._slabs[-1]) if self._slabs else 0

    def _add_slab(self, wanted: int) -> None:
        most = max(1, _SLAB_BYTES // (4 * self._width))
        size = min(most, max(wanted, self._len // _GROWTH))
        self._starts.append(self._capacity)
        self._slabs.append(torch.empty(size, self._width, device=self._device))

    def _locate(self, position: int) -> tuple[Tensor, int]:
        index = bisect_right(self._starts, position) - 1
        return self._slabs[index], position - self._starts[index]
