"""Slots side by side on a base: adapted layers in place, and every slot's numbers where its layers read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.factors import FactorStore
from loraxs_search.methods import PackedBase, get_method
from loraxs_search.multiplexed import AdaptedHead, PassContext, SlotRowMap, SlotUpdates, TrainedLinear
from loraxs_search.packing.packed_heads import PackedHeads
from loraxs_search.packing.prefix_cache import PrefixCache
from loraxs_search.packing.served_model import ServedModel
from loraxs_search.packing.slot import Slot
from loraxs_search.records import Hyperparameters
from loraxs_search.trial import GradientCheckpointing


class PackedModel:
    """Puts adapted layers on a base for some slots, and takes them off again.

    Args:
        first: The base as the first task loads it; `serve` adds what other tasks load.
        num_workers: Passes that may be computed at the same time.
        prefix: Skips the layers below the lowest one that a slot in place adapts.
    """

    def __init__(
        self,
        first: ServedModel,
        factors: FactorStore,
        num_workers: int,
        prefix: PrefixCache,
    ) -> None:
        self.context: PassContext[SlotRowMap] = PassContext()
        self.prefix = prefix
        self.slots: tuple[Slot, ...] = ()  # a slot's index is its place here
        self._first, self._served = first, [first]
        self._factors, self._num_workers = factors, num_workers
        self._checkpointing = GradientCheckpointing(first.adaptable.layers, self.context)
        self._linears = {name: first.model.get_submodule(name) for name in first.adaptable.sizes}
        self._originals: list[tuple[PreTrainedModel, str, nn.Module]] = []
        self._bases: dict[str, PackedBase] = {}  # by method

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return self._first.adaptable.device

    def serve(self, model: ServedModel) -> None:
        """Serve slots whose task loads the base as this model too; it has the very body of the first.

        Raises:
            BaseModelError: a head cannot be computed apart from the body, as rows of several models need it.
        """
        self.clear()
        for served in (*self._served, model):
            served.share()
        self._served.append(model)

    def serves(self, model: PreTrainedModel) -> bool:
        """Whether slots whose task loads the base as this model may be placed."""
        return any(served.model is model for served in self._served)

    def served(self, model: PreTrainedModel) -> ServedModel:
        """Return what belongs to one of the models that are served."""
        return next(served for served in self._served if served.model is model)

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
        lowest = self._first.adaptable.lowest(modules)
        self.prefix.place(lowest, (slot.data for slot in wanted))
        for name in modules:
            updates = [updates.update(name) for updates in self._updates if name in updates.modules]
            self._put(self._first.model, name, TrainedLinear(self._linears[name], self.context, updates))
        models = list(dict.fromkeys(slot.model for slot in wanted))
        for model in models:
            self._put_heads(self.served(model))
        self._place_pruning([self.served(model) for model in models])
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
        for model, name, original in self._originals:
            model.set_submodule(name, original)
        self._originals.clear()
        for served in self._served:
            served.put(served.heads)
            served.last_layer.remove()
            served.reads.remove()
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
            reads: Row and column of each read, (M, 2); None where a head reads some rows.
            width: T, the tokens of each row, padding included.
            read_map: Whose each read is.
        """
        if reads is None:
            yield False
            return
        pruning = self.served(self.slots[read_map.segments[0].adapter].model).reads
        with pruning.reading(reads, width, lambda: self.context.narrow(read_map)) as is_cut:
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

    def _put_heads(self, served: ServedModel) -> None:
        heads = {
            name: AdaptedHead(head, self.context, self._heads.state(name, head)) for name, head in served.heads.items()
        }
        for name, head in heads.items():
            self._put(served.model, name, head)
        served.put(heads)

    def _place_pruning(self, models: Sequence[ServedModel]) -> None:
        """Prune what no slot's task reads: to a head's reads where all have heads of one class, else pass by pass."""
        if len(models) == 1:
            models[0].last_layer.place()
        if headless := [served for served in models if not served.heads]:
            headless[0].reads.place()

    def _put(self, model: PreTrainedModel, name: str, module: nn.Module) -> None:
        self._originals.append((model, name, model.get_submodule(name)))
        model.set_submodule(name, module)


def _sort_key(slot: Slot) -> tuple[object, ...]:
    """Return a key that puts slots of one model, task, basis and module set side by side: segments are long."""
    modules, hyper = slot.adapter.modules, slot.spec.hyperparameters
    own = type(slot.model).__name__
    return own, slot.data.task.name, hyper.method, hyper.basis, modules[0], modules[-1], modules, slot.name
