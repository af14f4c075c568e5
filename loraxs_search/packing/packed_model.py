"""Slots side by side on a base: adapted layers and heads, which read every slot's numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.head import head_names
from loraxs_search.engine.base import AdaptedBase, Owners
from loraxs_search.engine.layers import AdaptedHead, HeadState, SlotUpdates, TrainedLinear
from loraxs_search.engine.out_of_memory import GradientCheckpointing
from loraxs_search.engine.passes import Requester
from loraxs_search.engine.prefix_cache import PrefixCache
from loraxs_search.engine.pruning import LastLayerPruning, ReadPruning
from loraxs_search.engine.rows import PassContext, RowSegment, SlotRowMap, segments_of
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods import get_method, method_of
from loraxs_search.methods._base import PackedBase
from loraxs_search.packing.slot import AdaptableLayers, Slot
from loraxs_search.records.trial import Hyperparameters


class _PackedHeads:
    """Gives rows their slot's head, through leaves on the same memory whose gradients are a worker's own."""

    def __init__(self, slots: Sequence[Slot], num_workers: int) -> None:
        self._slots = slots
        self._leaves = [[_leaves(slot.head) for slot in slots] for _ in range(num_workers)]

    def state(self, name: str, module: nn.Module) -> Callable[[RowSegment[int], int], HeadState]:
        """Return the function that gives `AdaptedHead`, in place of a module of this name, the head of some rows."""
        states = [
            [
                HeadState(module, _within(f"{name}.", {**leaves, **slot.fixed_head}))
                for leaves, slot in zip(worker, self._slots, strict=True)
            ]
            for worker in self._leaves
        ]
        return lambda segment, worker: states[worker][segment.adapter]

    def begin(self) -> None:
        """Clear the gradients."""
        for leaf in (leaf for worker in self._leaves for leaves in worker for leaf in leaves.values()):
            leaf.grad = None

    @torch.no_grad()
    def collect(self) -> None:
        """Set the gradient of every slot's head, summed over the workers in their order; None if no row had it."""
        for i, slot in enumerate(self._slots):
            for name, parameter in slot.head.items():
                grads = [grad for worker in self._leaves if (grad := worker[i][name].grad) is not None]
                parameter.grad = functools.reduce(torch.add, grads) if grads else None


def _leaves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().requires_grad_() for name, value in tensors.items()}


def _within(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


class PackedModel(AdaptedBase):
    """Puts adapted layers on a base for some slots, and takes them off again; owners of rows are the slots' places.

    Args:
        adaptable: Layers and head of the base, with nothing of a trial on it.
        num_workers: Passes that may be computed at the same time.
        prefix: Skips the layers below the lowest one that a slot in place adapts.
    """

    model: PreTrainedModel
    context: PassContext[SlotRowMap]
    prefix: PrefixCache

    def __init__(
        self,
        adaptable: AdaptableLayers,
        factors: FactorStore,
        num_workers: int,
        prefix: PrefixCache,
    ) -> None:
        context: PassContext[SlotRowMap] = PassContext()
        super().__init__(adaptable.model, context)
        self.context, self.prefix, self.adaptable = context, prefix, adaptable
        self.slots: tuple[Slot, ...] = ()  # a slot's index is its place here
        self._factors, self._num_workers = factors, num_workers
        self._checkpointing = GradientCheckpointing(adaptable.layers, self.context)
        self._linears = {name: self.model.get_submodule(name) for name in adaptable.sizes}
        self._head_modules = {name: self.model.get_submodule(name) for name in head_names(self.model)}
        self._last_layer = LastLayerPruning(self.model, adaptable.layers if self._head_modules else None)
        self._reads = ReadPruning(self.model, None if self._head_modules else adaptable.layers)
        self._originals: list[tuple[str, nn.Module]] = []
        self._bases: dict[str, PackedBase] = {}  # by method

    def check(self, hyper: Hyperparameters) -> None:
        """Hold what a trial starts from against the base.

        Raises:
            FactorMismatchError: it was made for other factors.
        """
        method_of(hyper).check_on(self._linears, hyper, self._factors)

    def place(self, slots: Iterable[Slot]) -> None:
        """Serve exactly these slots from now on; does nothing when they are in place already."""
        wanted = tuple(sorted(slots, key=_sort_key))
        if wanted == self.slots:
            return
        self.clear()
        self._updates = self._slot_updates(wanted)
        self._heads = _PackedHeads(wanted, self._num_workers)
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
        if turned_on := self._checkpointing.turn_on():
            self.clear()  # what is in place was put there without it
        return turned_on

    @property
    def shares_beginnings(self) -> bool:
        """False: passes skip and prune layers, which a cache needs whole."""
        return False

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
        for updates in self._updates:
            updates.begin()
        self._heads.begin()

    def collect(self) -> None:
        """Hand each slot its gradients, summed over the workers in their order."""
        for updates in self._updates:
            updates.collect()
        self._heads.collect()

    def requesters(self) -> dict[str, Requester]:
        """Return who may ask: the slots in place, by name."""
        return {
            slot.name: Requester(index, slot.data, slot.data.kind.model.num_outputs)
            for index, slot in enumerate(self.slots)
        }

    def row_map(self, owners: Owners) -> SlotRowMap:
        return SlotRowMap(segments_of(owners), self.device)

    @contextmanager
    def reading(self, reads: Tensor | None, width: int, owners: Owners) -> Iterator[bool]:
        if reads is None:
            yield False
            return
        read_map = self.row_map(owners)
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
