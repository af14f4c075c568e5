"""Vectors of one length, kept dense while they come and go."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

_SLAB_BYTES = 1 << 26  # a slab at most, so that little is held for nothing when vectors go
_GROWTH = 20  # a slab is this fraction of what is held, so that little is free for what may yet come


class VectorPool:
    """Holds vectors at positions 0..n-1 without gaps; memory beyond theirs is a twentieth, or one slab of 64 MiB.

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
        """Memory held, space for vectors to come included."""
        return sum(slab.nbytes for slab in self._slabs)

    def append(self, vectors: Tensor) -> range:
        """Add vectors (n, width) at the end and return their positions."""
        first, done = self._len, 0
        while done < len(vectors):
            if self._len == self._capacity:
                self._add_slab(len(vectors) - done)
            slab, at = self._place(self._len)
            count = min(len(vectors) - done, len(slab) - at)
            slab[at : at + count] = vectors[done : done + count]
            self._len, done = self._len + count, done + count
        return range(first, self._len)

    def remove(self, position: int) -> int:
        """Take a vector away; the last one takes its place. Return the position that is free now, the last."""
        last = self._len - 1
        if position != last:
            (slab, at), (last_slab, last_at) = self._place(position), self._place(last)
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
        places = map(self._place, positions)
        return torch.stack([slab[at] for slab, at in places])

    # ---- inside ------------------------------------------------------------------------------------------------------
    @property
    def _capacity(self) -> int:
        return self._starts[-1] + len(self._slabs[-1]) if self._slabs else 0

    def _add_slab(self, wanted: int) -> None:
        most = max(1, _SLAB_BYTES // (4 * self._width))
        size = min(most, max(wanted, self._len // _GROWTH))
        self._starts.append(self._capacity)
        self._slabs.append(torch.empty(size, self._width, device=self._device))

    def _place(self, position: int) -> tuple[Tensor, int]:
        index = bisect_right(self._starts, position) - 1
        return self._slabs[index], position - self._starts[index]
