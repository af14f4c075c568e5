"""Slots seated side by side on a base: layers in place, every R packed where its layer reads it."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from loraxs_search.base_model import head_names, matrix
from loraxs_search.factors import Factors, FactorStore
from loraxs_search.methods.loraxs import FactorKey
from loraxs_search.packing.adaptable import AdaptableLayers
from loraxs_search.packing.last_layer import Readout
from loraxs_search.packing.layers import Cores, PackedHead, PackedLinear, Pair
from loraxs_search.packing.prefix_cache import PrefixCache
from loraxs_search.packing.row_map import PassContext
from loraxs_search.packing.slot import Slot


class PackedModel:
    """Puts packed layers on a base for some slots, and takes them off again.

    All slots share C (modules, seats, k, k) and its gradient, k being the widest rank seated. A slot reads and writes
    its own r x r blocks only, so what is outside them is zero for ever.

    Args:
        anatomy: What the base has to train.
        num_lanes: Passes that may be computed at the same time.
        prefix: Skips the layers below the lowest one that a seated slot adapts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        factors: FactorStore,
        anatomy: AdaptableLayers,
        num_lanes: int,
        prefix: PrefixCache,
    ) -> None:
        self.board = PassContext()
        self.prefix = prefix
        self.slots: tuple[Slot, ...] = ()
        self._model, self._factors, self._num_lanes = model, factors, num_lanes
        self._anatomy = anatomy
        self._readout = Readout(model, anatomy.layers)
        self._linears = {name: model.get_submodule(name) for name in anatomy.sizes}
        self._heads = {name: model.get_submodule(name) for name in head_names(model)}
        self._in_place: dict[str, nn.Module] = {}
        self._pairs: dict[tuple[str, FactorKey, int], Pair] = {}

    def seat(self, slots: Iterable[Slot]) -> None:
        """Serve exactly these slots from now on; does nothing when they are seated already."""
        wanted = tuple(sorted(slots, key=_neighbourly))
        if wanted == self.slots:
            return
        self.clear()
        rank = max(max(s.rank for s in slot.settings.values()) for slot in wanted)
        modules = [name for name in self._linears if any(name in slot.settings for slot in wanted)]
        device = wanted[0].r.device
        dtype = self._linears[modules[0]].get_parameter("weight").dtype
        self._exact = torch.zeros(len(modules), len(wanted), rank, rank, device=device)
        self._rounded = self._exact.to(dtype, copy=True)
        self._grads = torch.zeros(self._num_lanes, *self._exact.shape, device=device)
        self._head_views = [[_views(slot.head) for slot in wanted] for _ in range(self._num_lanes)]
        index = {name: i for i, name in enumerate(modules)}
        self._places = [torch.tensor([index[name] for name in slot.settings], device=device) for slot in wanted]
        self._folds = [self._fold(slot) for slot in wanted]
        self._forget_pairs(rank)
        self.prefix.place(self._anatomy.lowest(modules), (slot.data for slot in wanted))
        for i, name in enumerate(modules):
            cores = Cores(nn.Parameter(self._exact[i]), self._rounded[i], self._grads[:, i])
            self._put(name, self._packed_linear(name, wanted, cores))
        for name, head in self._heads.items():
            states = [
                [_under(f"{name}.", views | slot.kept_head) for views, slot in zip(lane, wanted, strict=True)]
                for lane in self._head_views
            ]
            self._put(name, PackedHead(head, self.board, states))
        self._readout.place()
        self.slots = wanted

    @property
    def seat_bytes(self) -> int:
        """Memory of one seat: its share of C and of its gradient, and what R is multiplied with."""
        packed = [self._exact, self._rounded, self._grads]
        return sum(tensor.nbytes for tensor in packed) // len(self.slots) + max(fold.nbytes for fold in self._folds)

    def clear(self) -> None:
        """Give the base back as it was."""
        for name, original in self._in_place.items():
            self._set(name, original)
        self._in_place.clear()
        self._readout.remove()
        self.prefix.remove()
        self.slots = ()

    @torch.no_grad()
    def begin(self) -> None:
        """Pack every slot's R as it stands, and start gradients at zero."""
        self._grads.zero_()
        for seat, (slot, places, fold) in enumerate(zip(self.slots, self._places, self._folds, strict=True)):
            rank = slot.r.shape[-1]
            self._exact[places, seat, :rank, :rank] = slot.r * fold
        self._rounded.copy_(self._exact)
        for view in (view for lane in self._head_views for views in lane for view in views.values()):
            view.grad = None

    @torch.no_grad()
    def collect(self) -> None:
        """Hand each slot its gradient, summed over the lanes in their order."""
        total = _sum(list(self._grads))
        assert total is not None  # there is a lane
        for seat, (slot, places, fold) in enumerate(zip(self.slots, self._places, self._folds, strict=True)):
            rank = slot.r.shape[-1]
            slot.r.grad = total[places, seat, :rank, :rank] * fold
            for name, parameter in slot.head.items():
                found = [lane[seat][name].grad for lane in self._head_views]
                parameter.grad = _sum([grad for grad in found if grad is not None])

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _packed_linear(self, name: str, slots: tuple[Slot, ...], cores: Cores) -> PackedLinear:
        families = [slot.settings[name].family if name in slot.settings else None for slot in slots]
        known = list(dict.fromkeys(family for family in families if family is not None))
        pairs = tuple(self._pair(name, family, cores.rounded.shape[-1]) for family in known)
        pair_of_seat = tuple(None if family is None else known.index(family) for family in families)
        return PackedLinear(self._linears[name], self.board, cores, pairs, pair_of_seat)

    def _fold(self, slot: Slot) -> Tensor:
        """Return what R is multiplied with, entry by entry, shape (modules, r, r): scale and singular values."""
        folds = [s.fold(self._get(name, s.family).singular_values) for name, s in slot.settings.items()]
        return torch.stack(folds).to(slot.r.device)

    def _pair(self, name: str, family: FactorKey, rank: int) -> Pair:
        key = (name, family, rank)
        if key not in self._pairs:
            weight = self._linears[name].get_parameter("weight")
            factors = self._get(name, family)
            known = min(rank, factors.rank)
            a, b = factors.ab(known, "none")
            if known < rank:  # no slot of this family is wider than its factors, so what is added stays unused
                a, b = pad(a, (0, 0, 0, rank - known)), pad(b, (0, rank - known))
            self._pairs[key] = Pair(a.to(weight), b.to(weight))
        return self._pairs[key]

    def _get(self, name: str, family: FactorKey) -> Factors:
        weight = matrix(self._linears[name]).detach()
        return self._factors.get(weight, rank=family.factor_rank, basis=family.basis, driver=family.driver)

    def _forget_pairs(self, rank: int) -> None:
        self._pairs = {key: pair for key, pair in self._pairs.items() if key[-1] == rank}

    def _put(self, name: str, layer: nn.Module) -> None:
        self._in_place[name] = self._model.get_submodule(name)
        self._set(name, layer)

    def _set(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self._model.get_submodule(parent), child, module)


def _neighbourly(slot: Slot) -> tuple[object, ...]:
    """Order slots so that those of one task, basis and module set sit together, and runs of rows are long."""
    modules = tuple(slot.settings)
    hyper = slot.spec.hyperparameters
    return slot.data.task.name, hyper.basis, modules[0], modules[-1], modules, slot.name


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _views(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return leaves on the same memory, whose gradients are their own."""
    return {name: value.detach().requires_grad_() for name, value in tensors.items()}


def _sum(tensors: list[Tensor]) -> Tensor | None:
    """Add tensors up in their order; None when there are none."""
    return functools.reduce(torch.add, tensors) if tensors else None
