"""LoRA-XS for many adapters in one pass: y_i += B C_i A x_i for the positions of row i.

C (k, k) is R with scale and singular values multiplied in, zero outside the adapter's own rank; A and B are
orthonormal, so adapters of any sigma share them. A trial's R is a stack here, where the lone trial's model has a tensor
for each layer. Letters: m rows of T positions, k the rank of the pair.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from loraxs_search.base_model.layers import matrix
from loraxs_search.engine.layers import RowMap, RowSegment
from loraxs_search.factors.compute import FactorKey, Factors
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods._base import ADAPTER, ROOT, PackedAdapter, R
from loraxs_search.methods.loraxs.config import LoraXSConfig, ModuleSettings
from loraxs_search.methods.loraxs.layer import factors_for, starting_r


class PackedR(PackedAdapter):
    """R of shape (modules, r, r), float32, drawn as the lone trial draws it.

    Args:
        linears: The adapted layers by full name, in model order, which is the stack's.
        store: Where factors come from, for a trial that starts from an adapter.
    """

    def __init__(
        self, config: LoraXSConfig, linears: Mapping[str, nn.Module], store: FactorStore, device: torch.device
    ) -> None:
        self.modules = tuple(linears)
        self.settings: dict[str, ModuleSettings] = {}
        drawn = []
        for name, layer in linears.items():
            weight = matrix(layer).detach()
            own = self.settings[name] = ModuleSettings.of(config, name, weight.shape[0], weight.shape[1])
            factors = partial(factors_for, weight, own.factor_key, name, store)
            drawn.append(starting_r(config, own, name, factors))
        self.r = torch.stack(drawn).to(device).requires_grad_()
        self.tensors = [self.r]
        self._names = [f"{ROOT}{name}.{R}.{ADAPTER}" for name in linears]  # in the lone trial's model

    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        (stack,) = values
        return dict(zip(self._names, stack, strict=True))


@dataclass(frozen=True)
class _FactorPair:
    """A (k, in) and B transposed (k, out), orthonormal whatever an adapter's sigma.

    Both contiguous: with 8 columns, a CPU took twice as long for products with their transposes in memory.
    """

    a: Tensor
    b_t: Tensor


class FactorPairs:
    """Makes each pair once, for all adapters that share it.

    Args:
        linears: The base's linear layers, by full name.
        store: Returns where factors come from.
    """

    def __init__(self, linears: Mapping[str, nn.Module], store: Callable[[], FactorStore]) -> None:
        self._linears, self._store = linears, store
        self._variants: dict[tuple[str, FactorKey], Factors] = {}
        self._pairs: dict[tuple[str, FactorKey, int], _FactorPair] = {}

    def factors(self, module: str, key: FactorKey) -> Factors:
        """Return the whole factors of a module's weight."""
        if (module, key) in self._variants:
            return self._variants[module, key]
        return factors_for(matrix(self._linears[module]).detach(), key, module, self._store())

    def add_variant(self, module: str, key: FactorKey, factors: Factors) -> None:
        """Use these factors, another machine's, for a key that names their variant."""
        self._variants[module, key] = factors

    def pair(self, module: str, key: FactorKey, rank: int) -> _FactorPair:
        """Return the pair of a rank; beyond the factors' own it is zero, which no adapter of them uses."""
        if (module, key, rank) not in self._pairs:
            weight = self._linears[module].get_parameter("weight")
            factors = self.factors(module, key)
            known = min(rank, factors.rank)
            a, b = factors.ab(known, "none")
            more = (0, 0, 0, rank - known)
            self._pairs[module, key, rank] = _FactorPair(
                pad(a, more).to(weight), pad(b.T, more).to(weight).contiguous()
            )
        return self._pairs[module, key, rank]

    def keep(self, rank: int, keys: Collection[FactorKey]) -> None:
        """Forget the pairs of other ranks, and those that were drawn for adapters of other keys."""
        self._pairs = {
            (module, key, size): pair
            for (module, key, size), pair in self._pairs.items()
            if size == rank and (key.basis != "gaussian" or key in keys)
        }


_MOST_BY_EVERY_CORE = 1 << 18  # numbers that rows computed by every core may be


def add_core_update_(x: Tensor, y: Tensor, pair: _FactorPair, cores: Tensor) -> Tensor:
    """Add B C_i A x_i to y, in place, and return z = A x, shape (m T, k).

    Args:
        x, y: Shapes (m T, in) and (m T, out), row after row.
        cores: C of each row, shape (m, k, k), or (1, k, k) for all of them; in the dtype of x.
    """
    z = torch.mm(x, pair.a.T)  # (m T, k)
    u = torch.mm(z, cores[0].T) if len(cores) == 1 else torch.bmm(_by_core(z, cores), cores.mT).view_as(z)
    y.addmm_(u, pair.b_t)
    return z


def _by_core(z: Tensor, cores: Tensor) -> Tensor:
    """View (m T, k) as the positions that each core serves: (m, T, k) or (1, m T, k)."""
    return z.view(len(cores), -1, z.shape[-1])


def _rows(segments: Sequence[RowSegment]) -> Iterator[tuple[int, slice]]:
    """Yield each segment's slot, and its rows counted from the first segment's start."""
    for segment in segments:
        yield segment.adapter, slice(segment.start - segments[0].start, segment.stop - segments[0].start)


class _TrainedCores:
    """What the slots of a pack add to one layer; a `LayerUpdate`.

    Args:
        cores: C of each slot, shape (slots, k, k), in the dtype of the base.
        grads: Where their gradients are summed, in float32 over all passes of a round, shape (workers, slots, k, k).
        pair_of_slot: Index into `pairs` for each slot; None if the slot does not adapt this layer.
    """

    def __init__(
        self, cores: Tensor, grads: Tensor, pairs: Sequence[_FactorPair], pair_of_slot: tuple[int | None, ...]
    ) -> None:
        self.cores = cores
        self._grads, self._pairs, self._pair_of_slot = grads, pairs, pair_of_slot

    def adapts(self, rows: RowMap) -> bool:
        return bool(rows.runs(self._pair_of_slot))

    def add_(self, x: Tensor, y: Tensor, rows: RowMap) -> list[Tensor]:
        saved = []
        for run in rows.runs(self._pair_of_slot):
            at, pair = rows.positions(x, run.start, run.stop), self._pairs[run.label]
            if len(x) > rows.num_rows:
                saved.append(add_core_update_(x[at], y[at], pair, self.cores[run.slots]))
                continue
            # Rows of one position, such as the reads of a pass, are as many as positions elsewhere: a core for each
            # would take more memory than the layer. Few rows, such as those that are written, are computed by every
            # core at once, and each takes its own: two calls instead of several for each slot. Many are computed slot
            # by slot.
            z, own = torch.mm(x[at], pair.a.T), self.cores[run.slot_span]  # (m, k), (s, k, k)
            if len(own) == 1:
                u = torch.mm(z, own[0].T)
            elif z.numel() * len(own) <= _MOST_BY_EVERY_CORE:
                by_every = torch.mm(z, own.flatten(0, 1).T)  # (m, s k)
                u = by_every.view(-1, z.shape[1]).index_select(0, run.places)
            else:
                u = torch.cat([torch.mm(z[own_rows], self.cores[slot].T) for slot, own_rows in _rows(run.segments)])
            y[at].addmm_(u, pair.b_t)
            saved.append(z)
        return saved

    def backward_(self, dy: Tensor, dx: Tensor | None, saved: Sequence[Tensor], rows: RowMap) -> None:
        grads = self._grads[rows.worker]
        for run, z in zip(rows.runs(self._pair_of_slot), saved, strict=True):
            at, pair = rows.positions(dy, run.start, run.stop), self._pairs[run.label]
            if len(dy) > rows.num_rows:
                cores = self.cores[run.slots]
                g = _by_core(torch.mm(dy[at], pair.b_t.T), cores)  # (m, T, k)
                if dx is not None:
                    dx[at].addmm_(torch.bmm(g, cores).view_as(z), pair.a)
                grads.index_add_(0, run.slots, torch.bmm(g.mT, _by_core(z, cores)).to(grads.dtype))
                continue
            g = torch.mm(dy[at], pair.b_t.T)  # (m, k)
            for slot, own in _rows(run.segments):
                grads[slot] += torch.mm(g[own].T, z[own])
            if dx is not None:
                by_slot = [torch.mm(g[own], self.cores[slot]) for slot, own in _rows(run.segments)]
                dx[at].addmm_(torch.cat(by_slot), pair.a)


class PackedCores:
    """C of every slot on every module, and its gradient: (modules, slots, k, k), k being the widest rank of them.

    The `SlotUpdates` of LoRA-XS. A slot reads and writes its own r x r blocks only, so what is outside them is zero for
    ever.

    Args:
        slots: `PackedR`, and None for slots of other methods.
        linears: The base's linear layers, by full name.
        pairs: Of the same layers; see `FactorPairs.keep`.
        num_workers: Passes that may be computed at the same time.
    """

    def __init__(
        self,
        slots: Sequence[PackedAdapter | None],
        linears: Mapping[str, nn.Module],
        pairs: FactorPairs,
        num_workers: int,
    ) -> None:
        self._slots, self._pairs = cast("Sequence[PackedR | None]", slots), pairs
        self._own = [(i, slot) for i, slot in enumerate(self._slots) if slot is not None]
        own = [slot for _, slot in self._own]
        self.modules = [name for name in linears if any(name in slot.settings for slot in own)]
        self._rank = max(slot.r.shape[-1] for slot in own)
        device, dtype = own[0].r.device, linears[self.modules[0]].get_parameter("weight").dtype
        shape = len(self.modules), len(slots), self._rank, self._rank
        self._cores = torch.zeros(shape, dtype=dtype, device=device)  # in the dtype that passes compute with
        self._grads = torch.zeros(num_workers, *shape, device=device)
        index = {name: i for i, name in enumerate(self.modules)}
        self._rows = [torch.tensor([index[name] for name in slot.settings], device=device) for slot in own]
        self._scales = []  # what R is multiplied with, entry by entry, (modules, r, r) of each slot
        for slot in own:
            values = {name: pairs.factors(name, s.factor_key).singular_values for name, s in slot.settings.items()}
            scales = [settings.scale_core(values[name]) for name, settings in slot.settings.items()]
            self._scales.append(torch.stack(scales).to(device))
        pairs.keep(self._rank, {s.factor_key for slot in own for s in slot.settings.values()})

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot: its share of C and of its gradient, and what R is multiplied with."""
        packed = self._cores.nbytes + self._grads.nbytes
        return packed // len(self._slots) + max(scale.nbytes for scale in self._scales)

    def update(self, module: str) -> _TrainedCores:
        """Return what is added to the output of one of `modules`."""
        keys = [
            None if slot is None or module not in slot.settings else slot.settings[module].factor_key
            for slot in self._slots
        ]
        known: list[FactorKey] = list(dict.fromkeys(key for key in keys if key is not None))
        pairs = [self._pairs.pair(module, key, self._rank) for key in known]
        pair_of_slot = tuple(None if key is None else known.index(key) for key in keys)
        i = self.modules.index(module)
        return _TrainedCores(self._cores[i], self._grads[:, i], pairs, pair_of_slot)

    @torch.no_grad()
    def begin(self) -> None:
        """Read every slot's current R, and set gradients to zero."""
        self._grads.zero_()
        for (i, slot), rows, scale in zip(self._own, self._rows, self._scales, strict=True):
            rank = slot.r.shape[-1]
            self._cores[rows, i, :rank, :rank] = (slot.r * scale).to(self._cores.dtype)

    @torch.no_grad()
    def collect(self) -> None:
        """Set the gradient of every slot's R, summed over the workers in their order."""
        total = self._grads[0]
        for grads in self._grads[1:]:
            total = total + grads
        for (i, slot), rows, scale in zip(self._own, self._rows, self._scales, strict=True):
            rank = slot.r.shape[-1]
            slot.r.grad = total[rows, i, :rank, :rank] * scale
