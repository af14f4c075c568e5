"""Trials in training, and the one training loop: rounds of one step for each slot, and evaluations, in shared passes.

A slot has a trial's adapter, head and optimizer state, apart from the layers that compute it. There are two ways to
compute slots: many on layers that give each row its adapter, or one as PEFT does. Tensors have the same names in a
snapshot whether packed or a PEFT model's: snapshots fit both.

Clipping and AdamW are for all slots at once, each with its own rates, decay and betas. An optimizer of `torch.optim`
takes one of each a call, so that a pack of n trials would be 2 n optimizers. On an accelerator, where a call costs more
than its numbers, each operation here runs over the tensors of every trial in one call; on a CPU, and for large tensors
such as a whole model's, it is the passes over memory that cost: each tensor is passed over once, and no copies are
made. Both are what torch's optimizers are made of; their names are private, and this is the one file that knows them.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.layers import head_names, output_head, repeated_layers
from loraxs_search.base_model.packable import Sharing, check_packable
from loraxs_search.base_model.sharing import probe_sharing
from loraxs_search.engine.layers import (
    AdaptedBase,
    AdaptedHead,
    AdaptedLinear,
    GradientCheckpointing,
    HeadState,
    Indices,
    Owners,
    PassContext,
    RowMap,
    RowSegment,
    SlotUpdates,
    base_of,
)
from loraxs_search.engine.passes import Engine, PassExecutor, Requester, RowTooLongError
from loraxs_search.engine.prefix_cache import PrefixCache
from loraxs_search.engine.pruning import LastLayerPruning
from loraxs_search.errors import LoraxsError, TrialDivergedError, UsageError, unknown_name
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods import get_method, method_of
from loraxs_search.methods._base import ADAPTER, ROOT, PackedAdapter
from loraxs_search.methods.starting import draw_head
from loraxs_search.methods.stored import rounded
from loraxs_search.records.codec import Split
from loraxs_search.records.task import LinearModule
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialSpec
from loraxs_search.tasks.encoded import Batch, TrainingBatches
from loraxs_search.tasks.kinds import ForwardRequest, PassOutputs, Request, RowScores, TaskKind
from loraxs_search.tasks.prepared import PreparedTask
from loraxs_search.trial.attach import attach, check_frozen, detach
from loraxs_search.trial.evaluate import split_metrics
from loraxs_search.trial.snapshot import Snapshot

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Slot:
    """A trial in training: what it trains, float32 leaves on the device of its base; AdamW's moments; reports.

    Data order, schedule and seeds are functions of (seed, step), so a slot that was restored continues bit for bit on
    the same device, with the same number of threads, in the same company.

    Args:
        head: Trained parameters of the head by the names that the base's layers know them by.
        stored_head: Their names in a snapshot, in the same order.
        size: What is stored of the trial.
        fixed_head: Parameters of the head that stay as they are and are not stored.
        frozen: `Method.frozen_cosines` of a PEFT model.
    """

    def __init__(
        self,
        spec: TrialSpec,
        data: PreparedTask,
        adapter: PackedAdapter,
        head: Mapping[str, Tensor],
        stored_head: Sequence[str],
        size: AdapterSize,
        *,
        fixed_head: Mapping[str, Tensor] = MappingProxyType({}),
        frozen: tuple[float, ...] = (),
    ) -> None:
        self.spec, self.data, self.adapter, self.head, self.fixed_head = spec, data, adapter, head, fixed_head
        self._stored_head, self._size, self._frozen = stored_head, size, frozen
        self.parameters = [*adapter.tensors, *head.values()]  # the adapter's, then the head's
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        hyper = spec.hyperparameters
        self.batches = TrainingBatches(data.lengths("train"), hyper.batch_size, hyper.seed)
        self.step, self.device_s, self.num_tokens = 0, 0.0, 0
        self._reports: tuple[TrialReport, ...] = ()
        self._losses: list[float] = []

    @property
    def name(self) -> str:
        """The trial's name, unique among the slots of a host."""
        return self.spec.name

    @property
    def done(self) -> bool:
        return self.step >= self.spec.hyperparameters.max_steps

    def stepped(self, loss: float, num_tokens: int) -> None:
        """Record that the step was taken."""
        if not self._reports or self.step >= self._reports[-1].step:
            self._losses.append(loss)
        self.step += 1
        self.num_tokens += num_tokens

    def report(self, metrics: Mapping[str, float], scoring_s: float = 0.0) -> TrialReport:
        """Make and keep the report of these scores, which took so long, at the current step."""
        report = TrialReport(
            trial_id=self.spec.trial_id,
            step=self.step,
            metrics=metrics,
            train_loss=sum(self._losses) / max(1, len(self._losses)),
            device_s=self.device_s,
            num_tokens=self.num_tokens,
            size=self._size,
            scoring_s=scoring_s,
        )
        self._losses.clear()
        self._reports = (*self._reports, report)
        return report

    def snapshot(self) -> Snapshot:
        """Return the whole state; tensors are copies on the CPU."""
        moments = {
            f"{key}/{name}": value
            for key, values in zip(_MOMENTS, zip(*self.moments, strict=True), strict=True)
            for name, value in self._named(values).items()
        }
        return Snapshot(
            trial_id=self.spec.trial_id,
            step=self.step,
            parameters=self._named(self.parameters),
            moments=moments if self.step else {},
            reports=self._reports,
            device_s=self.device_s,
            num_tokens=self.num_tokens,
            study=self.spec.study,
            frozen=self._frozen,
        )

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a trial's state."""
        self.step, self._reports = snapshot.step, snapshot.reports
        self.device_s, self.num_tokens = snapshot.device_s, snapshot.num_tokens
        check_frozen(snapshot, self._frozen)
        stored = [(self.parameters, snapshot.parameters)]
        if snapshot.moments:
            for key, values in zip(_MOMENTS, zip(*self.moments, strict=True), strict=True):
                stored.append((list(values), {name: snapshot.moments[f"{key}/{name}"] for name in snapshot.parameters}))
        for tensors, named in stored:
            own = [*self.adapter.stacked(named), *(named[name] for name in self._stored_head)]
            for tensor, value in zip(tensors, own, strict=True):
                tensor.copy_(value)

    @contextmanager
    def as_stored(self) -> Iterator[None]:
        """Give the trial, for a while, the numbers that are stored of it."""
        dtype = self.spec.hyperparameters.stored_dtype
        if dtype == "float32":  # these numbers already; a copy of them may be one of the whole base
            yield
            return
        kept = [tensor.detach().clone() for tensor in self.parameters]
        matrices = self.adapter.named([tensor.detach() for tensor in self.adapter.tensors]).values()
        try:
            with torch.no_grad():
                for own, is_head in ((matrices, False), (self.head.values(), True)):
                    for tensor in own:
                        tensor.copy_(rounded(tensor, dtype, is_head=is_head))
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(self.parameters, kept, strict=True):
                    tensor.copy_(value)

    def _named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return copies of tensors that are shaped like the slot's, on the CPU, by their names in a snapshot."""
        num_own = len(self.adapter.tensors)
        named = self.adapter.named(tensors[:num_own])
        named |= dict(zip(self._stored_head, tensors[num_own:], strict=True))
        return {name: value.detach().to("cpu", copy=True) for name, value in named.items()}


# ---- the bases -------------------------------------------------------------------------------------------------------
class TrainedBase(AdaptedBase):
    """A base on which a `Pack` trains slots; owners of rows are the slots' places in `slots`."""

    slots: tuple[Slot, ...] = ()

    @abstractmethod
    def start(self, spec: TrialSpec, data: PreparedTask) -> Slot:
        """Return a trial as it starts; every number drawn depends only on its seed.

        Raises:
            UsageError, BaseModelError: the trial asks for what the base does not have, or for what cannot be computed
                in this way, or was made for other factors.
        """

    @abstractmethod
    def place(self, slots: Sequence[Slot]) -> None:
        """Compute exactly these slots from now on; does nothing when they are in place already."""

    @abstractmethod
    def clear(self) -> None:
        """Restore the base."""

    def collect(self) -> None:
        """Hand each slot its gradients once all passes of a step are computed."""


class PeftBase(TrainedBase):
    """One trial at a time, as PEFT puts it on a base; also methods without PEFT, which return another model.

    A slot that is not in place any more cannot come back: its tensors were the model's.

    Args:
        model: The base, with nothing of a trial on it.
        modules: Names of the linear layers that may be adapted.
    """

    def __init__(self, model: PreTrainedModel, factors: FactorStore, modules: Collection[str]) -> None:
        super().__init__(model)
        self._base, self._factors, self._modules = model, factors, modules
        self._attached: tuple[PeftModel | PreTrainedModel, TrialSpec] | None = None
        self._adapter = _PeftAdapter({})
        self._checkpointing = GradientCheckpointing(None, self.context)

    def start(self, spec: TrialSpec, data: PreparedTask) -> Slot:
        _check_target_modules(spec, self._modules)
        self.clear()
        method = method_of(spec.hyperparameters)
        self._attached = model, _ = attach(self._base, spec, self._factors, data.kind.outputs), spec
        self.model, base = model, base_of(model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        own = {name: p for name, p in trained.items() if method.is_adapter(name, model)}
        head = {name: p for name, p in trained.items() if name not in own}
        self._adapter = _PeftAdapter(own)
        self._checkpointing = GradientCheckpointing(repeated_layers(base, dict(base.named_modules()))[1], self.context)
        frozen = method.frozen_cosines(model)
        return Slot(spec, data, self._adapter, head, tuple(head), method.measure(model), frozen=frozen)

    def place(self, slots: Sequence[Slot]) -> None:
        (slot,) = self.slots = tuple(slots)
        assert slot.adapter is self._adapter  # its model is on the base

    def begin(self) -> None:
        for slot in self.slots:
            for parameter in slot.parameters:
                parameter.grad = None

    def checkpoint_gradients(self) -> bool:
        if turned_on := self._checkpointing.turn_on():
            self._checkpointing.place(0)
        return turned_on

    def clear(self) -> None:
        if self._attached is not None:
            self._checkpointing.remove()
            detach(*self._attached)
        self.model, self._attached, self.slots = self._base, None, ()


class _PeftAdapter(PackedAdapter):
    """The trained parameters of a PEFT model, by their own names."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters, self.tensors = parameters, list(parameters.values())

    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._parameters, values, strict=True))

    def stacked(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        return [named[name] for name in self._parameters]


class PackedModel(TrainedBase):
    """Puts adapted layers on a base for some slots, and takes them off again.

    Args:
        model: The frozen base as all tasks load it, whatever their number of outputs, with nothing of a trial on it.
        factors: The store that factors come from; `LoadedFactors` when the base is not in its checkpoint's precision.
        modules: The linear layers that may be adapted.
        num_workers: Passes that may be computed at the same time.
        cache_bytes: Memory for the hidden states below the lowest adapted layer, which are computed once for each row
            and then looked up; None means 1 GiB on a CPU and 4 GiB elsewhere, 0 computes them in every pass.
        sharing: Which layers rows can share, as `probe_sharing` returns it; None means that the base is probed here.

    Raises:
        BaseModelError: the base does not compute each row by itself.
    """

    model: PreTrainedModel
    prefix: PrefixCache

    def __init__(
        self,
        model: PreTrainedModel,
        factors: FactorStore,
        modules: Sequence[LinearModule],
        *,
        num_workers: int = 1,
        cache_bytes: int | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        super().__init__(model, PassContext())
        self._factors, self._num_workers = factors, num_workers
        self._modules = {module.name: module for module in modules}
        self._linears = {name: model.get_submodule(name) for name in self._modules}
        self._stack, layers = repeated_layers(model, self._modules)
        self.prefix = PrefixCache(model, layers, cache_bytes)
        sharing = sharing or probe_sharing(model, tuple(self._modules))
        sharing.check("Trials", "set `search.pack_size` to 1 or auto: trials then take turns")
        self.unpackable = sharing.unpackable
        self._checkpointing = GradientCheckpointing(layers, self.context)
        self._head_modules = {name: model.get_submodule(name) for name in head_names(model)}
        self._head_parts = output_head(model) if self._head_modules else ("", ())
        self._pruning = LastLayerPruning(model, layers)
        self._originals: dict[str, nn.Module] = {}
        self._bases: dict[str, Callable[[Sequence[PackedAdapter | None]], SlotUpdates]] = {}  # by method

    def start(self, spec: TrialSpec, data: PreparedTask) -> Slot:
        hyper = spec.hyperparameters
        method = method_of(hyper)
        check_packable(hyper.target_modules, self.unpackable)
        _check_target_modules(spec, self._modules)
        if not method.packs:
            raise UsageError(
                f"Trials that share passes must be of a method that can, but {spec.trial_id} of {method.name} cannot.",
                hint="search one study at a time: its trials then take turns",
            )
        wanted = [module for name, module in self._modules.items() if name in set(hyper.target_modules)]
        linears = {module.name: self._linears[module.name] for module in wanted}
        adapter = method.packed_adapter(hyper, linears, self._factors, self.device)
        num_outputs = data.kind.model.num_outputs
        started, fixed, owners = draw_head(self.model, hyper, num_outputs, self._head_parts, data.kind.outputs)
        shapes = ({name: tuple(value.shape) for name, value in own.items()} for own in (started, fixed))
        size = method.size(method.params(hyper), wanted, *shapes)
        head = {name: value.to(self.device).requires_grad_() for name, value in started.items()}
        fixed = {name: value.to(self.device) for name, value in fixed.items()}
        # As a trial's own model names them, where PEFT trains a copy of the module that holds the parameter.
        owned = [(next(owner for owner in owners if name.startswith(f"{owner}.")), name) for name in started]
        stored = [f"{ROOT}{o}.modules_to_save.{ADAPTER}.{name.removeprefix(f'{o}.')}" for o, name in owned]
        return Slot(spec, data, adapter, head, stored, size, fixed_head=fixed)

    def place(self, slots: Sequence[Slot]) -> None:
        def likeness(slot: Slot) -> tuple[object, ...]:  # those of one task, basis and module set stand side by side
            modules, hyper = slot.adapter.modules, slot.spec.hyperparameters
            return slot.data.task.name, hyper.method, hyper.basis, modules[0], modules[-1], modules, slot.name

        wanted = tuple(sorted(slots, key=likeness))
        if wanted == self.slots:
            return
        self.clear()
        methods = [slot.spec.hyperparameters.method for slot in wanted]
        self._updates: list[SlotUpdates] = []
        for name in dict.fromkeys(methods):
            if name not in self._bases:
                self._bases[name] = get_method(name).packed_updates(self._linears, self._factors, self._num_workers)
            own = [slot.adapter if own == name else None for own, slot in zip(methods, wanted, strict=True)]
            self._updates.append(self._bases[name](own))
        self._heads = _PackedHeads(wanted, self._num_workers)
        modules = [name for name in self._linears if any(name in updates.modules for updates in self._updates)]
        inside = [re.match(rf"{re.escape(self._stack)}\.(\d+)\.", name) for name in modules]
        lowest = min((int(match[1]) if match else 0 for match in inside), default=0)  # repeated layer that is adapted
        self.prefix.place(lowest, (slot.data for slot in wanted))
        for name in modules:
            updates = [updates.update(name) for updates in self._updates if name in updates.modules]
            self._originals[name] = self._linears[name]
            self.model.set_submodule(name, AdaptedLinear(self._linears[name], self.context, updates))
        for name, head in self._head_modules.items():
            self._originals[name] = head
            self.model.set_submodule(name, AdaptedHead(head, self.context, self._heads.state(name, head)))
        self._pruning.place()
        self._checkpointing.place(lowest)
        self.slots = wanted

    def checkpoint_gradients(self) -> bool:
        if turned_on := self._checkpointing.turn_on():
            self.clear()  # what is in place was put there without it
        return turned_on

    @property
    def slot_bytes(self) -> int:
        """Memory that the layers take for one slot, in addition to its own."""
        return max(updates.slot_bytes for updates in self._updates)

    def clear(self) -> None:
        """Restore the base; slots keep their state and may continue later."""
        self._checkpointing.remove()
        for name, original in self._originals.items():
            self.model.set_submodule(name, original)
        self._originals.clear()
        self._pruning.remove()
        self.prefix.remove()
        self.slots = ()

    def begin(self) -> None:
        for updates in self._updates:
            updates.begin()
        self._heads.begin()

    def collect(self) -> None:
        for updates in self._updates:
            updates.collect()
        self._heads.collect()

    def row_map(self, owners: Owners, worker: int = 0) -> RowMap:
        edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(owners)]
        segments = [RowSegment(int(owners[a]), a, b) for a, b in itertools.pairwise(edges)]
        return RowMap(segments, self.device, worker)

    @contextmanager
    def reading(self, reads: Tensor | None, width: int, owners: Owners) -> Iterator[bool]:
        read_map = None if reads is None else self.row_map(owners, self.context.row_map.worker)
        with self._pruning.reading(reads, width, lambda: setattr(self.context, "row_map", read_map)) as is_cut:
            yield is_cut


class _PackedHeads:
    """Gives rows their slot's head, through leaves on the same memory whose gradients are a worker's own."""

    def __init__(self, slots: Sequence[Slot], num_workers: int) -> None:
        self._slots = slots
        self._leaves = [
            [{name: value.detach().requires_grad_() for name, value in slot.head.items()} for slot in slots]
            for _ in range(num_workers)
        ]

    def state(self, name: str, module: nn.Module) -> Callable[[RowSegment, int], HeadState]:
        """Return the function that gives `AdaptedHead`, in place of a module of this name, the head of some rows."""

        prefix = f"{name}."
        states = [
            [
                HeadState(module, {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)})
                for named in ({**leaves, **slot.fixed_head} for leaves, slot in zip(worker, self._slots, strict=True))
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


def _check_target_modules(spec: TrialSpec, known: Collection[str]) -> None:
    """Refuse a trial that adapts no layer, or a layer that the base lacks.

    Raises:
        UsageError: with the layers that there are.
    """
    names = spec.hyperparameters.target_modules
    if not names:
        raise UsageError(f"`target_modules` must name a layer, but trial {spec.trial_id} names none.")
    if unknown := sorted(set(names) - set(known)):
        raise UsageError(unknown_name("target_modules", unknown[0], known))


Rows = Mapping[str, Indices]  # of each trial, by its name


class Pack:
    """Trains and scores slots on a base that it does not own. One caller at a time.

    A slot's numbers depend only on the slot, up to the rounding of shared passes; its failure is its own.

    Args:
        max_tokens: Padded tokens of one pass; see `Engine`.
        executor: Threads for passes side by side; None computes one pass at a time in the caller's thread.
    """

    def __init__(self, base: TrainedBase, *, max_tokens: int, executor: PassExecutor | None = None) -> None:
        self.base = base
        self.engine = Engine(base, executor, max_tokens)

    def join(self, spec: TrialSpec, data: PreparedTask, snapshot: Snapshot | None = None) -> Slot:
        """Make a slot for a trial, at its start or in the state of its snapshot; see `TrainedBase.start`."""
        slot = self.base.start(spec, data)
        if snapshot is not None:
            slot.restore(snapshot)
        return slot

    def step(self, slots: Sequence[Slot]) -> dict[str, LoraxsError]:
        """Take one optimizer step of each slot; return the errors of those that could not, by the trial's name.

        A slot with an error keeps its state from before the step; leave it out of the next round.
        """
        started, errors, updates = time.perf_counter(), dict[str, LoraxsError](), list[AdamWUpdate]()
        rows = {slot.name: slot.batches.at(slot.step) for slot in slots}
        lengths = [slot.data.lengths("train")[rows[slot.name]] for slot in slots]
        tokens, longest = [int(own.sum()) for own in lengths], max(int(own.max()) for own in lengths)
        losses = None
        try:
            losses = self.engine.within_memory(longest, lambda: self._gradients(slots, rows), learns=True)
        except RowTooLongError as error:
            if len(slots) == 1:
                return {slots[0].name: error}
        if losses is None:  # each by itself, once the error has let go of what was computed
            return {name: error for slot in slots for name, error in self.step([slot]).items()}
        # The norm of each slot's whole gradient.
        grads = [p.new_zeros(()) if p.grad is None else p.grad for slot in slots for p in slot.parameters]
        each = torch.split(torch.stack(torch._foreach_norm(grads)), [len(slot.parameters) for slot in slots])
        norms = torch.stack([torch.linalg.vector_norm(of_slot) for of_slot in each])
        numbers = torch.stack([torch.stack([losses[slot.name] for slot in slots]), norms]).tolist()
        for slot, loss, norm, num_tokens in zip(slots, *numbers, tokens, strict=True):
            of = {"training loss": loss, "gradient norm": norm}
            if bad := [(what, value) for what, value in of.items() if not math.isfinite(value)]:
                errors[slot.name] = TrialDivergedError(
                    f"`{bad[0][0]}` must be finite, but got {bad[0][1]} at step {slot.step + 1}.",
                    hint="lower the learning rates or the scale in the space",
                )
            else:
                updates += _updates(slot, norm)
                slot.stepped(loss, num_tokens)
        adamw(updates)
        _share_time(slots, tokens, time.perf_counter() - started)
        return errors

    def scores(self, slots: Sequence[Slot], split: Split) -> dict[str, RowScores | LoraxsError]:
        """Score every row of a split with each slot as it is stored; return the scores, or the error, by its name."""
        requests = {s.name: s.data.kind.score(s.data, split, np.arange(s.data.num_rows(split))) for s in slots}
        with ExitStack() as stored:
            for slot in slots:
                stored.enter_context(slot.as_stored())
            try:
                return dict(self.engine.run(self._placed(slots), requests))
            except RowTooLongError as error:
                if len(slots) == 1:
                    return {slots[0].name: error}
        return {name: found for slot in slots for name, found in self.scores([slot], split).items()}

    def evaluate(self, slots: Sequence[Slot], split: Split) -> dict[str, dict[str, float] | LoraxsError]:
        """Score each slot on every row of a split; return metrics and mean loss, or the error, by the trial's name."""
        started, results = time.perf_counter(), dict[str, dict[str, float] | LoraxsError]()
        scores = self.scores(slots, split)
        for slot in slots:
            score = scores[slot.name]
            try:
                results[slot.name] = score if isinstance(score, LoraxsError) else split_metrics(slot.data, split, score)
            except TrialDivergedError as error:
                results[slot.name] = error
        _share_time(slots, [int(slot.data.lengths(split).sum()) for slot in slots], time.perf_counter() - started)
        return results

    def answer(self, slots: Sequence[Slot], requests: Mapping[str, Request]) -> dict[str, Any]:
        """Return the results of requests by the trial's name: tensors on the CPU, rows first, or what was written.

        All slots stay in place, also those that ask for nothing.
        """
        return self.engine.compute(self._placed(slots), requests)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _placed(self, slots: Sequence[Slot]) -> dict[str, Requester]:
        """Put slots in place, and return who may ask: all of them, by name."""
        self.base.place(slots)
        return {
            slot.name: Requester(index, slot.data, slot.data.kind.model.num_outputs)
            for index, slot in enumerate(self.base.slots)
        }

    def _gradients(self, slots: Sequence[Slot], rows: Rows) -> dict[str, Tensor]:
        """Set each slot's whole gradient, and return each slot's mean loss, a scalar on the device."""
        losses = {slot.name: torch.zeros((), device=slot.parameters[0].device) for slot in slots}
        counts = {s.name: int(s.data.encoded("train").counts(rows[s.name]).sum()) for s in slots}
        requests = {slot.name: ForwardRequest("train", rows[slot.name], _Losses(slot.data.kind)) for slot in slots}
        weights = {name: 1 / count for name, count in counts.items()}
        for share, (values, *_) in self.engine.run_passes(self._placed(slots), requests, weights):
            losses[share.name] += values.sum() / counts[share.name]
        self.base.collect()
        return losses


@dataclass(frozen=True)
class _Losses:
    """Reduces rows to their losses; equal for all trials of a task."""

    kind: TaskKind

    def __call__(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        return (self.kind.loss(outputs, batch),)


def _share_time(slots: Sequence[Slot], tokens: Sequence[int], seconds: float) -> None:
    for slot, share in zip(slots, tokens, strict=True):
        slot.device_s += seconds * share / max(1, sum(tokens))


# ---- the optimizer ---------------------------------------------------------------------------------------------------
_EPS = 1e-8  # torch's own
_LARGE = 1 << 19  # numbers of the mean tensor


@dataclass(frozen=True)
class AdamWUpdate:
    """A tensor in training, with what AdamW does to it. A tensor without a gradient is left as it is.

    Args:
        clip: What the gradient is multiplied with.
        step: The step to take, from 1.
    """

    parameter: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    step: int


@torch.no_grad()
def adamw(updates: Sequence[AdamWUpdate], *, foreach: bool | None = None) -> None:
    """Take the step of each tensor, as `torch.optim.AdamW` does of a gradient that was clipped.

    Args:
        foreach: Make one call for each operation, over all tensors, instead of one for each tensor; None means what is
            faster.
    """
    trained = [t for t in updates if t.parameter.grad is not None]
    if not trained:
        return
    grads = [t.parameter.grad for t in trained if t.parameter.grad is not None]
    if any(t.clip != 1.0 for t in trained):
        torch._foreach_mul_(grads, [t.clip for t in trained])
    if foreach is None:
        foreach = grads[0].device.type != "cpu" and sum(grad.numel() for grad in grads) <= _LARGE * len(grads)
    if not foreach:
        for t, grad in zip(trained, grads, strict=True):
            torch._fused_adamw_(
                [t.parameter],
                [grad],
                [t.exp_avg],
                [t.exp_avg_sq],
                [],
                [torch.tensor(float(t.step), device=grad.device)],
                lr=t.learning_rate,
                beta1=t.betas[0],
                beta2=t.betas[1],
                weight_decay=t.weight_decay,
                eps=_EPS,
                amsgrad=False,
                maximize=False,
            )
        return
    parameters, means, squares = zip(*((t.parameter, t.exp_avg, t.exp_avg_sq) for t in trained), strict=True)
    if any(t.weight_decay for t in trained):
        torch._foreach_mul_(parameters, [1 - t.learning_rate * t.weight_decay for t in trained])
    torch._foreach_mul_(means, [t.betas[0] for t in trained])
    torch._foreach_add_(means, torch._foreach_mul(grads, [1 - t.betas[0] for t in trained]))
    torch._foreach_mul_(squares, [t.betas[1] for t in trained])
    torch._foreach_addcmul_(squares, grads, grads, [1 - t.betas[1] for t in trained])
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [math.sqrt(1 - t.betas[1] ** t.step) for t in trained])
    torch._foreach_add_(roots, _EPS)
    sizes = [-t.learning_rate / (1 - t.betas[0] ** t.step) for t in trained]
    torch._foreach_addcdiv_(parameters, means, roots, sizes)


def _updates(slot: Slot, norm: float) -> Iterator[AdamWUpdate]:
    """Yield the AdamW update of each tensor of a slot, given the norm of its whole gradient."""
    hyper = slot.spec.hyperparameters
    factor, betas = hyper.lr_factor(slot.step), (hyper.adam_beta1, hyper.adam_beta2)
    limit = hyper.max_grad_norm
    clip = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0  # torch's own formula
    rates = chain(repeat(hyper.learning_rate, len(slot.adapter.tensors)), repeat(hyper.head_learning_rate))
    for parameter, moments, rate in zip(slot.parameters, slot.moments, rates, strict=False):
        yield AdamWUpdate(parameter, *moments, rate * factor, betas, hyper.weight_decay, clip, slot.step + 1)
