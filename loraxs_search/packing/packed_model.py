"""Slots side by side on a base: adapted layers in place, and every slot's numbers where its layers read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from loraxs_search.base_model import head_names
from loraxs_search.factors import FactorStore
from loraxs_search.methods import PackedBase, get_method
from loraxs_search.multiplexed import AdaptedHead, PassContext, SlotRowMap, SlotUpdates, TrainedLinear
from loraxs_search.packing.adaptable import AdaptableLayers
from loraxs_search.packing.last_layer import LastLayerPruning
from loraxs_search.packing.packed_heads import PackedHeads
from loraxs_search.packing.prefix_cache import PrefixCache
from loraxs_search.packing.read_pruning import ReadPruning
from loraxs_search.packing.slot import Slot
from loraxs_search.records import Hyperparameters
from loraxs_search.trial import GradientCheckpointing


class PackedModel:
    """Puts adapted layers on a base for some slots, and takes them off again.

    Args:
        adaptable: Layers and head of the base, with nothing of a trial on it.
        num_workers: Passes that may be computed at the same time.
        prefix: Skips the layers below the lowest one that a slot in place adapts.
    """

    def __init__(
        self,
        adaptable: AdaptableLayers,
        factors: FactorStore,
        num_workers: int,
        prefix: PrefixCache,
    ) -> None:
        self.context: PassContext[SlotRowMap] = PassContext()
        self.prefix = prefix
        self.slots: tuple[Slot, ...] = ()  # a slot's index is its place here
        self.model, self.adaptable = adaptable.model, adaptable
        self._factors, self._num_workers = factors, num_workers
        self._checkpointing = GradientCheckpointing(adaptable.layers, self.context)
        self._linears = {name: self.model.get_submodule(name) for name in adaptable.sizes}
        self._head_modules = {name: self.model.get_submodule(name) for name in head_names(self.model)}
        self._last_layer = LastLayerPruning(self.model, adaptable.layers if self._head_modules else None)
        self._reads = ReadPruning(self.model, None if self._head_modules else adaptable.layers)
        self._originals: list[tuple[str, nn.Module]] = []
        self._bases: dict[str, PackedBase] = {}  # by method

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return self.adaptable.device

    def check(self, hyper: Hyperparameters) -> None:
        """Hold what a trial starts from against the base.

        Raises:
            FactorMismatchError: it was made for other factors.
        """
        get_method(hyper.method).check_on(self._linears, hyper, self._factors)

    def place(self, slots: Iterable[Slot]) -> None:
        """Serve exactly these slots from now on; does nothing when they are in place already."""
        wanted = tuple(sorted(slots, key=_sort_key))
        if wanted == self.slots:
            return
        self.clear()
        self._updates = self._slot_updates(wanted)
        self._heads = PackedHeads(wanted, self._num_workers)
        modules = [name for name in self._linears if any(name in updates.modules for updates in self._updates)]
        lowest = self.adaptable.lowest(modules)
        self.prefix.place(lowest, (slot.data for slot in wanted))
        for name in modules:
            updates = [updates.update(name) for updates in self._updates if name in updates.modules]
            self._put(name, TrainedLinear(self._linears[name], self.context, updates))
        for name, head in self._head_modules.items():
            self._put(name, AdaptedHead(head, self.context, self._heads.state(name, head)))
        self._last_layer.place()
        self._reads.place()
        self._checkpointing.place(lowest)
        self.slots = wanted

    def checkpoint_gradients(self) -> bool:
        """Compute layers again in backward from now on, to save memory; return whether that is new and possible."""
        if turned_on := self._checkpointing.turn_on():
            self.clear()  # what is in place was put there without it
        return turned_on

    @property
    def slot_bytes(self) -> int:
        """Memory that the layers take for one slot, in addition to its own."""
        return max(updates.slot_bytes for updates in self._updates)

    def clear(self) -> None:
        """Restore the base."""
        self._checkpointing.remove()
        for name, original in self._originals:
            self.model.set_submodule(name, original)
        self._originals.clear()
        self._last_layer.remove()
        self._reads.remove()
        self.prefix.remove()
        self.slots = ()

    def begin(self) -> None:
        """Read every slot's current numbers, and set gradients to zero."""
        for updates in self._updates:
            updates.begin()
        self._heads.begin()

    def collect(self) -> None:
        """Hand each slot its gradients, summed over the workers in their order."""
        for updates in self._updates:
            updates.collect()
        self._heads.collect()

    @contextmanager
    def reading(self, reads: Tensor | None, width: int, read_map: SlotRowMap) -> Iterator[bool]:
        """Compute no more of the topmost layer than this thread's pass reads, where that can be; yield whether it is.

        Args:
            reads: Row and column of each read, (M, 2); None where a head reads.
            width: T, the tokens of each row, padding included.
            read_map: Whose each read is.
        """
        if reads is None:
            yield False
            return
        with self._reads.reading(reads, width, lambda: self.context.narrow(read_map)) as is_cut:
            yield is_cut

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _slot_updates(self, slots: tuple[Slot, ...]) -> tuple[SlotUpdates, ...]:
        """Return the updates of each method that some slot trains."""
        methods = [slot.spec.hyperparameters.method for slot in slots]
        return tuple(
            self._packed(name).updates(
                [slot.adapter if own == name else None for own, slot in zip(methods, slots, strict=True)]
            )
            for name in dict.fromkeys(methods)
        )

    def _packed(self, method: str) -> PackedBase:
        if method not in self._bases:
            packed = get_method(method).packed
            assert packed is not None  # a slot exists, so its method can be packed
            self._bases[method] = packed.on(self._linears, self._factors, self._num_workers)
        return self._bases[method]

    def _put(self, name: str, module: nn.Module) -> None:
        self._originals.append((name, self.model.get_submodule(name)))
        self.model.set_submodule(name, module)


def _sort_key(slot: Slot) -> tuple[object, ...]:
    """Return a key that puts slots of one task, basis and module set side by side: segments are long."""
    modules, hyper = slot.adapter.modules, slot.spec.hyperparameters
    return slot.data.task.name, hyper.method, hyper.basis, modules[0], modules[-1], modules, slot.name
