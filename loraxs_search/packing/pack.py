"""Many trials on one frozen base: rounds of one optimizer step each, and evaluations, in shared passes."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.head import head_names
from loraxs_search.base_model.packable import Sharing, check_packable, check_shared
from loraxs_search.base_model.reading import readable, timing_inputs
from loraxs_search.base_model.sharing import probe_sharing
from loraxs_search.engine.base import AdaptedBase, Owners
from loraxs_search.engine.layers import AdaptedHead, HeadState, SlotUpdates, TrainedLinear
from loraxs_search.engine.out_of_memory import MEMORY_ERRORS, GradientCheckpointing, RowTooLongError, is_out_of_memory
from loraxs_search.engine.passes import Reduced, Requester
from loraxs_search.engine.planning import Indices, PassExecutor
from loraxs_search.engine.prefix_cache import PrefixCache
from loraxs_search.engine.pruning import LastLayerPruning, ReadPruning
from loraxs_search.engine.requests import Engine
from loraxs_search.engine.rows import PassContext, RowSegment, SlotRowMap, segments_of
from loraxs_search.errors import LoraxsError, TrialDivergedError
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods import get_method, method_of
from loraxs_search.methods._base import PackedBase
from loraxs_search.packing.adamw import AdamWUpdate, adamw, gradient_norms
from loraxs_search.packing.slot import AdaptableLayers, Slot
from loraxs_search.records.base import LinearModule
from loraxs_search.records.literals import Split
from loraxs_search.records.trial import Hyperparameters, TrialSpec
from loraxs_search.tasks.batch import Batch
from loraxs_search.tasks.kinds import ForwardRequest, PassOutputs, Request, TaskKind
from loraxs_search.tasks.prepared import PreparedTask
from loraxs_search.trial.evaluate import split_metrics
from loraxs_search.trial.run import check_step
from loraxs_search.trial.snapshot import Snapshot


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


ResultT = TypeVar("ResultT")
Rows = Mapping[str, Indices]  # of each trial, by its name


class Pack:
    """Trains and scores slots on a base that it does not own. One caller at a time.

    A slot's numbers depend only on the slot, up to the rounding of shared passes; its failure is its own.

    Args:
        model: The frozen base as all tasks load it, whatever their number of outputs.
        factors: The store that factors come from; `LoadedFactors` when the base is not in its checkpoint's precision.
        modules: The linear layers that may be adapted.
        max_tokens: Padded tokens of one pass; see `Engine`.
        executor: Threads for passes side by side; None computes one pass at a time in the caller's thread.
        cache_bytes: Memory for the hidden states below the lowest adapted layer, which are computed once for each row
            and then looked up; None means 1 GiB on a CPU and 4 GiB elsewhere, 0 computes them in every pass.
        sharing: Which layers rows can share, as `probe_sharing` returns it; None means that the base is probed here.

    Raises:
        BaseModelError: the base does not compute each row by itself.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        factors: FactorStore,
        modules: Sequence[LinearModule],
        *,
        max_tokens: int,
        executor: PassExecutor | None = None,
        cache_bytes: int | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self._model = model
        executor = executor or PassExecutor(1)
        adaptable = AdaptableLayers(model, modules)
        self.prefix = PrefixCache(model, adaptable.layers, cache_bytes)
        self._packed = PackedModel(adaptable, factors, executor.num_workers, self.prefix)
        sharing = sharing or probe_sharing(model, tuple(adaptable.sizes))
        check_shared(sharing, "Trials", "set `search.pack_size` to 1 or auto: trials then take turns")
        self.unpackable = sharing.unpackable
        self._engine = Engine(self._packed, executor, max_tokens)

    @property
    def max_tokens(self) -> int:
        """Padded tokens that one pass may have from now on."""
        return self._engine.max_tokens

    def join(self, spec: TrialSpec, data: PreparedTask, snapshot: Snapshot | None = None) -> Slot:
        """Make a slot for a trial, at its start or in the state of its snapshot.

        Raises:
            TargetModulesError, RankError, BaseModelError: the trial asks for what the base does not have, or for a
                layer that cannot serve many trials in one pass.
        """
        check_packable(spec.hyperparameters.target_modules, self.unpackable)
        self._packed.check(spec.hyperparameters)
        return Slot(spec, data, self._packed.adaptable, snapshot)

    def step(self, slots: Sequence[Slot]) -> dict[str, LoraxsError]:
        """Take one optimizer step of each slot; return the errors of those that could not, by trial id.

        A slot with an error keeps its state from before the step; leave it out of the next round.
        """
        return self._each_at_worst(self._step, slots)

    def _step(self, slots: Sequence[Slot]) -> dict[str, LoraxsError]:
        started = time.perf_counter()
        rows = {slot.name: slot.next_rows() for slot in slots}
        tokens = [int(slot.data.lengths("train")[rows[slot.name]].sum()) for slot in slots]
        longest = max(int(slot.data.lengths("train")[rows[slot.name]].max()) for slot in slots)
        losses = self._engine.within_memory(longest, lambda: self._gradients(slots, rows), learns=True)
        norms = gradient_norms([slot.parameters for slot in slots])
        numbers = torch.stack([torch.stack([losses[slot.name] for slot in slots]), norms]).tolist()
        errors: dict[str, LoraxsError] = {}
        updates: list[AdamWUpdate] = []
        for slot, loss, norm, num_tokens in zip(slots, *numbers, tokens, strict=True):
            try:
                check_step(loss, norm, slot.step + 1)
            except TrialDivergedError as error:
                errors[slot.name] = error
            else:
                updates += slot.next_update(norm)
                slot.stepped(loss, num_tokens)
        adamw(updates)
        _share_time(slots, tokens, time.perf_counter() - started)
        return errors

    def evaluate(self, slots: Sequence[Slot], split: Split) -> dict[str, dict[str, float] | LoraxsError]:
        """Score each slot on every row of a split; return by trial id the metrics of `trial.evaluate`, or the error."""
        return self._each_at_worst(lambda some: self._evaluate(some, split), slots)

    def _evaluate(self, slots: Sequence[Slot], split: Split) -> dict[str, dict[str, float] | LoraxsError]:
        started = time.perf_counter()
        requests = {s.name: s.data.kind.score(s.data, split, np.arange(s.data.num_rows(split))) for s in slots}
        self._packed.place(slots)
        scores = self._engine.run(self._packed.requesters(), requests)
        results: dict[str, dict[str, float] | LoraxsError] = {}
        for slot in slots:
            score = scores[slot.name]
            try:
                results[slot.name] = (
                    score if isinstance(score, TrialDivergedError) else split_metrics(slot.data, split, score)
                )
            except TrialDivergedError as error:
                results[slot.name] = error
        _share_time(slots, [int(slot.data.lengths(split).sum()) for slot in slots], time.perf_counter() - started)
        return results

    def answer(self, slots: Sequence[Slot], requests: Mapping[str, Request]) -> dict[str, Any]:
        """Return the results of requests by trial id: tensors on the CPU, rows first, or what was written.

        All slots stay in place, also those that ask for nothing.
        """
        self._packed.place(slots)
        return self._engine.compute(self._packed.requesters(), requests)

    @torch.no_grad()
    def time_pass(self, num_tokens: int) -> float:
        """Return the seconds that a pass of so many tokens through the bare base takes, the shortest of three.

        Infinite where the pass does not fit into memory.
        """
        self.clear()
        try:
            inputs = timing_inputs(self._model, num_tokens)
            return min(_seconds(lambda: readable(self._model, inputs), self._model.device) for _ in range(3))
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            return math.inf

    @property
    def slot_bytes(self) -> int:
        """Memory that the layers take for each slot, in addition to the slot's own."""
        return self._packed.slot_bytes

    def clear(self) -> None:
        """Restore the base; slots keep their state and may continue later."""
        self._packed.clear()

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _each_at_worst(
        self, compute: Callable[[Sequence[Slot]], dict[str, ResultT | LoraxsError]], slots: Sequence[Slot]
    ) -> dict[str, ResultT | LoraxsError]:
        """Compute for all slots together; where memory does not hold a row of one, for each by itself."""
        try:
            return compute(slots)
        except RowTooLongError as error:
            if len(slots) == 1:
                return {slots[0].name: error}
        results: dict[str, ResultT | LoraxsError] = {}
        for slot in slots:
            results |= self._each_at_worst(compute, [slot])
        return results

    def _gradients(self, slots: Sequence[Slot], rows: Rows) -> dict[str, Tensor]:
        """Set each slot's whole gradient, and return each slot's mean loss, a scalar on the device."""
        self._packed.place(slots)
        losses = {slot.name: torch.zeros((), device=slot.parameters[0].device) for slot in slots}
        counts = {s.name: int(s.data.encoded("train").counts(rows[s.name]).sum()) for s in slots}

        def backward(reduced: list[Reduced]) -> None:
            weights = [_per_row(part, counts) for part in reduced]
            torch.autograd.backward([part.parts[0] for part in reduced], weights)

        requests = {slot.name: ForwardRequest("train", rows[slot.name], _Losses(slot.data.kind)) for slot in slots}
        outputs = self._engine.run_passes(self._packed.requesters(), requests, backward)
        for reduced in chain.from_iterable(own for _, own in outputs):
            for (trial, _), part in zip(reduced.names, reduced.split(reduced.parts[0]), strict=True):
                losses[trial] += part.sum() / counts[trial]
        self._packed.collect()
        return losses


def _seconds(compute: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    compute()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - started


@dataclass(frozen=True)
class _Losses:
    """Reduces rows to their losses; equal for all trials of a task."""

    kind: TaskKind

    def __call__(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        return (self.kind.loss(outputs, batch),)


def _per_row(reduced: Reduced, counts: Mapping[str, int]) -> Tensor:
    """Return one over each row's trial's count, shape (n,), float32."""
    values = [np.full(num_rows, 1 / counts[trial], dtype=np.float32) for trial, num_rows in reduced.names]
    return torch.from_numpy(np.concatenate(values)).to(reduced.parts[0].device)


def _share_time(slots: Sequence[Slot], tokens: Sequence[int], seconds: float) -> None:
    for slot, share in zip(slots, tokens, strict=True):
        slot.device_s += seconds * share / max(1, sum(tokens))
