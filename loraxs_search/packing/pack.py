"""Many trials on one frozen base: rounds of one optimizer step each, and evaluations, in shared passes."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraxs_search.base_model import (
    Sharing,
    check_packable,
    check_shared,
    probe_sharing,
    readable,
    timing_inputs,
)
from loraxs_search.errors import LoraxsError, TrialDivergedError, UsageError
from loraxs_search.factors import FactorStore
from loraxs_search.packing.adamw import AdamWUpdate, adamw, gradient_norms
from loraxs_search.packing.adaptable import AdaptableLayers
from loraxs_search.packing.packed_model import PackedModel
from loraxs_search.packing.pass_executor import PassExecutor
from loraxs_search.packing.passes import Reads, Reduced, run_pass, run_prefix
from loraxs_search.packing.plan import Demand, Indices, Pass, padding, plan_passes
from loraxs_search.packing.prefix_cache import PrefixCache
from loraxs_search.packing.prompt_reading import PromptReader
from loraxs_search.packing.served_model import ServedModel
from loraxs_search.packing.slot import Slot
from loraxs_search.packing.writing import PackWriter
from loraxs_search.records import LinearModule, Split, TrialSpec
from loraxs_search.tasks import Batch, PreparedTask
from loraxs_search.tasks.kinds import PassOutputs, Read, Request, TaskKind, Write, drive
from loraxs_search.trial import Snapshot, in_row_order, is_worth_sharing, prompt_groups, split_metrics

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
Rows = Mapping[str, Indices]  # of each trial, by its name
RequestT = TypeVar("RequestT", Read, Write)
ModelFor = Callable[[PreparedTask], PreTrainedModel]

_PADDING_FACTOR = 1.1  # what padding may add to the tokens of a plan
_TAKE_TURNS = "set `search.pack_size` to 1 or auto: trials take turns then, each alone"
_PASSES_PER_WORKER = (1, 2, 3, 4)  # passes a worker may have in a round


class Pack:
    """Trains and scores slots on a base that it does not own. One caller at a time.

    A slot's numbers depend on the slot alone, up to the rounding of shared passes; its failure is its own.

    Args:
        model: The frozen base as the first task loads it, by `load_model`.
        factors: The store that factors come from; `LoadedFactors` when the base is not in its checkpoint's precision.
        modules: The linear layers that may be adapted.
        max_tokens: Padded tokens of one pass; halved, and halved again, when memory runs out. A longer row is computed
            by itself; where memory runs out even then, training checkpoints the layers.
        executor: Threads for passes side by side; None computes one pass at a time in the caller's thread.
        cache_bytes: Memory for the hidden states below the lowest adapted layer, which are computed once for each row
            and then looked up; None means 1 GiB on a CPU and 4 GiB elsewhere, 0 computes them in every pass.
        sharing: Which layers rows can share, as `probe_sharing` returns it; None means that the base is probed here.
        model_for: Returns the base as a task loads it, on the very body of `model`. Asked once for each class of
            models, while nothing of a trial is on the base. None: every task must read the base as `model` does, by a
            head or without one.

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
        model_for: ModelFor | None = None,
    ) -> None:
        self.max_tokens = self._first_max_tokens = max_tokens
        self._executor = executor or PassExecutor(1)
        self._model, self._modules = model, tuple(modules)
        adaptable = AdaptableLayers(model, modules)
        sharing = sharing or probe_sharing(model, tuple(adaptable.sizes))
        check_shared(sharing, "Trials", _TAKE_TURNS)
        self.unpackable = sharing.unpackable
        first = ServedModel(model, adaptable)
        self._numbers_segments: bool | None = None  # in the rows of all tasks, once there is one
        self._served: dict[str, ServedModel] = {}  # by the class that loads it
        self._model_for = model_for or functools.partial(_same_reading, first)
        self._prefix = PrefixCache(model, adaptable.layers, cache_bytes)
        self._packed = PackedModel(first, factors, self._executor.num_workers, self._prefix)
        self._prompt_reader = PromptReader(self._packed, self._executor)
        self._writer = PackWriter(self._packed, self._executor, _is_out_of_memory)

    def join(self, spec: TrialSpec, data: PreparedTask, snapshot: Snapshot | None = None) -> Slot:
        """Make a slot for a trial, at its start or in the state of its snapshot.

        Raises:
            TargetModulesError, RankError, BaseModelError: the trial asks for what the base does not have, or for a
                layer that cannot serve many trials in one pass; or its task loads another body than those before.
        """
        served = self._served_for(data)
        self._check_inputs(data)
        check_packable(spec.hyperparameters.target_modules, self.unpackable)
        self._packed.check(spec.hyperparameters)
        return Slot(spec, data, served.adaptable, snapshot)

    def step(self, slots: Sequence[Slot]) -> dict[str, LoraxsError]:
        """Take one optimizer step of each slot; return the errors of those that could not, by trial id.

        A slot with an error keeps its state from before the step; leave it out of the next round.
        """
        started = time.perf_counter()
        rows = {slot.name: slot.next_rows() for slot in slots}
        tokens = [int(slot.data.lengths("train")[rows[slot.name]].sum()) for slot in slots]
        longest = max(int(slot.data.lengths("train")[rows[slot.name]].max()) for slot in slots)
        losses = self._within_memory(longest, lambda: self._gradients(slots, rows), learns=True)
        norms = gradient_norms([slot.parameters for slot in slots])
        numbers = torch.stack([torch.stack([losses[slot.name] for slot in slots]), norms]).tolist()
        errors: dict[str, LoraxsError] = {}
        updates: list[AdamWUpdate] = []
        for slot, loss, norm, num_tokens in zip(slots, *numbers, tokens, strict=True):
            try:
                slot.check(loss, norm)
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
        started = time.perf_counter()
        requests = {s.name: s.data.kind.score(s.data, split, np.arange(s.data.num_rows(split))) for s in slots}
        scores = drive(requests, functools.partial(self.answer, slots))
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
        reads = {trial: request for trial, request in requests.items() if isinstance(request, Read)}
        writes = {trial: request for trial, request in requests.items() if isinstance(request, Write)}
        results: dict[str, Any] = self._answer_reads(slots, reads) if reads else {}
        if writes:
            self._begin(slots, {})
            for model, own in self._by_model(writes):
                results |= self._writer.write(model, own)
        return results

    def shape_of_round(self, slots: Sequence[Slot]) -> tuple[int, float]:
        """Return the passes that the next round of these slots takes, and its padded tokens over its real ones."""
        self._packed.place(slots)
        rows = {slot.name: slot.next_rows() for slot in slots}
        demands = self._demands(_training(slots, rows))
        passes = self._passes(demands)
        return len(passes), padding(demands, passes)

    @torch.no_grad()
    def time_pass(self, num_tokens: int) -> float:
        """Return the seconds that a pass of so many tokens through the bare base takes, the shortest of three.

        Infinite where the pass does not fit into memory.
        """
        self.clear()
        try:
            inputs = timing_inputs(self._model, num_tokens)
            return min(_seconds(lambda: readable(self._model, inputs), self._model.device) for _ in range(3))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            return math.inf

    @property
    def slot_bytes(self) -> int:
        """Memory that the layers take for each slot, in addition to the slot's own."""
        return self._packed.slot_bytes

    @property
    def num_skipped(self) -> int:
        """Number of lowest layers that passes of these slots skip, since their outputs are cached."""
        return self._prefix.depth

    @property
    def cached_bytes(self) -> int:
        """Memory of the cached hidden states below the lowest adapted layer."""
        return self._prefix.num_bytes

    def clear(self) -> None:
        """Restore the base; slots keep their state and may continue later."""
        self._packed.clear()

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _served_for(self, data: PreparedTask) -> ServedModel:
        """Return the model that reads rows of a task; gets it where it is the first of its class."""
        name = data.kind.model.auto_class
        if name not in self._served:
            self.clear()
            model = self._model_for(data)
            if not self._packed.serves(model):
                self._serve(model, data)
            self._served[name] = self._packed.served(model)
        return self._served[name]

    def _check_inputs(self, data: PreparedTask) -> None:
        """Refuse rows that the base is given in another form than those of other tasks: no pass takes both."""
        numbered = data.encoded("train").types is not None
        if self._numbers_segments not in (None, numbered):
            raise UsageError(
                "Rows of tasks that share a host must all have `token_type_ids` or none, but those of task"
                f" {data.task.name} ({data.task.kind}) have {'them' if numbered else 'none'}.",
                hint="search such tasks one after the other",
            )
        self._numbers_segments = numbered

    def _serve(self, model: PreTrainedModel, data: PreparedTask) -> None:
        adaptable = AdaptableLayers(model, self._modules)
        sharing = probe_sharing(model, tuple(adaptable.sizes))
        check_shared(sharing, f"Trials of task {data.task.name}", _TAKE_TURNS)
        self._packed.serve(ServedModel(model, adaptable))
        self.unpackable |= sharing.unpackable

    def _by_model(self, requests: Mapping[str, RequestT]) -> Iterator[tuple[PreTrainedModel, dict[str, RequestT]]]:
        """Yield requests of slots in place by the model that answers them."""
        models = {slot.name: slot.model for slot in self._packed.slots}
        for model in dict.fromkeys(models[trial] for trial in requests):
            yield model, {trial: request for trial, request in requests.items() if models[trial] is model}

    def _gradients(self, slots: Sequence[Slot], rows: Rows) -> dict[str, Tensor]:
        """Set each slot's whole gradient, and return each slot's mean loss, a scalar on the device."""
        reads = _training(slots, rows)
        self._begin(slots, reads)
        losses = {slot.name: torch.zeros((), device=slot.parameters[0].device) for slot in slots}
        counts = {s.name: int(s.data.encoded("train").counts(rows[s.name]).sum()) for s in slots}

        def compute(worker: int, shared: Pass) -> list[Reduced]:
            reduced = run_pass(self._model, self._packed, shared, reads, worker)
            weights = [_per_row(part, counts) for part in reduced]
            torch.autograd.backward([part.parts[0] for part in reduced], weights)
            return [part.detached() for part in reduced]

        passes = self._passes(self._demands(reads))
        for reduced in chain.from_iterable(self._executor.run(passes, compute)):
            for (trial, _), part in zip(reduced.trials, reduced.split(reduced.parts[0]), strict=True):
                losses[trial] += part.sum() / counts[trial]
        self._packed.collect()
        return losses

    def _answer_reads(self, slots: Sequence[Slot], reads: Reads) -> dict[str, tuple[Tensor, ...]]:
        data = {slot.name: slot.data for slot in slots}
        sources = {trial: data[trial].encoded(read.source) for trial, read in reads.items()}
        shared = {trial: read for trial, read in reads.items() if is_worth_sharing(sources[trial], read.rows)}
        whole = {trial: _with_prompts(read) for trial, read in reads.items() if trial not in shared}
        results: dict[str, tuple[Tensor, ...]] = {}
        if whole:
            longest = max(int(data[trial].lengths(read.source)[read.rows].max()) for trial, read in whole.items())
            results |= self._within_memory(longest, lambda: self._read(slots, whole))
        if shared:
            self._begin(slots, {})
            groups = [prompt_groups(sources[trial], read.rows) for trial, read in shared.items()]
            longest = max(tokens for own in groups for tokens, _ in own)
            for model, own in self._by_model(shared):
                read = functools.partial(self._prompt_reader.read, model, own, self._passes)
                results |= self._within_memory(longest, read)
        return results

    def _read(self, slots: Sequence[Slot], reads: Reads) -> dict[str, tuple[Tensor, ...]]:
        self._begin(slots, reads)
        computed: dict[str, list[tuple[Indices, tuple[Tensor, ...]]]] = {trial: [] for trial in reads}

        @torch.inference_mode()
        def compute(worker: int, shared: Pass) -> list[Reduced]:
            return run_pass(self._model, self._packed, shared, reads, worker)

        passes = self._passes(self._demands(reads))
        for shared, outputs in zip(passes, self._executor.run(passes, compute), strict=True):
            positions = iter(share.positions for share in shared.shares)
            for reduced in outputs:
                columns = zip(*(reduced.split(part.cpu()) for part in reduced.parts), strict=True)
                for (trial, _), parts in zip(reduced.trials, columns, strict=True):
                    computed[trial].append((next(positions), parts))
        return {
            trial: in_row_order([positions for positions, _ in parts], [part for _, part in parts])
            for trial, parts in computed.items()
        }

    def _begin(self, slots: Sequence[Slot], reads: Reads) -> None:
        self._packed.place(slots)
        self._packed.begin()
        self._look_ahead(reads)

    def _look_ahead(self, reads: Reads) -> None:
        """Cache the hidden states below the lowest adapted layer, for rows that are not cached yet and still fit.

        This comes before all passes: inside them, the worker that is first would decide whose rounding all others use.
        """
        wanted: dict[tuple[PreparedTask, Split], list[Indices]] = {}
        for slot in self._packed.slots:
            read = reads.get(slot.name)
            if read is not None and isinstance(read.source, str):
                wanted.setdefault((slot.data, read.source), []).append(read.rows)
        for (data, split), rows in wanted.items():
            new = self._prefix.missing(data, split, np.concatenate(rows))
            if len(new):
                self._remember(data, split, new)

    def _remember(self, data: PreparedTask, split: Split, rows: Indices) -> None:
        passes = self._passes([Demand(0, data.lengths(split)[rows])])
        compute = functools.partial(run_prefix, self._model, self._prefix, data, split, rows)
        for known, states in self._executor.run(passes, lambda _, shared: compute(shared)):
            self._prefix.keep(data, split, known, states)

    def _demands(self, reads: Reads) -> list[Demand]:
        """Return what is to be planned, in the order in which slots are placed."""
        requests = [(slot, reads[slot.name]) for slot in self._packed.slots if slot.name in reads]
        return [Demand(slot.name, slot.data.lengths(read.source)[read.rows]) for slot, read in requests]

    def _passes(self, demands: Sequence[Demand]) -> list[Pass]:
        longest = max(int(demand.lengths.max()) for demand in demands)
        total = sum(int(demand.lengths.sum()) for demand in demands)
        # Large passes need fewer calls, small ones keep every worker busy to the end: the plan with the earliest end
        # wins. A single worker is always busy.
        num_workers = self._executor.num_workers
        shares = [
            math.ceil(_PADDING_FACTOR * total / (num_workers * parts))
            for parts in (_PASSES_PER_WORKER if num_workers > 1 else (1,))
        ]
        budgets = dict.fromkeys(max(longest, min(self.max_tokens, share)) for share in shares)
        return min((plan_passes(demands, budget) for budget in budgets), key=self._executor.makespan)

    def _within_memory(self, longest: int, compute: Callable[[], ResultT], *, learns: bool = False) -> ResultT:
        """Compute, and halve the token budget after each failure until the passes fit; a failed try changes nothing.

        Args:
            longest: Tokens of the longest row; the budget is never less.
            learns: Whether there is a backward. Then layers are checkpointed where one row is too much.
        """
        while True:
            try:
                return compute()
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if not self._save_memory(longest, learns):
                    raise _too_long(longest) from error
            torch.cuda.empty_cache()

    def _save_memory(self, longest: int, learns: bool) -> bool:
        """Do what makes the next try need less memory; return False where there is nothing left to do."""
        emptied = self._prefix.shrink()
        if emptied or self.max_tokens > longest:
            self.max_tokens = min(self.max_tokens, max(longest, self.max_tokens // 2))
            log.warning("Memory ran out; passes have at most %d tokens from now on.", self.max_tokens)
            return True
        if learns and self._packed.checkpoint_gradients():
            self.max_tokens = self._first_max_tokens  # a token takes much less now
            log.warning("Memory ran out with one row; layers are computed again in backward from now on.")
            return True
        return False


def _same_reading(first: ServedModel, data: PreparedTask) -> PreTrainedModel:
    """Return the one model there is, if it reads rows as the task does."""
    if (data.kind.model.num_outputs is None) != bool(first.heads):
        return first.model
    has = "a head" if first.heads else "no head"
    raise UsageError(
        f"Trials of one model must read it in one way, but task {data.task.name} ({data.task.kind}) meets a base with"
        f" {has}.",
        hint="give the pack a function that returns the base as each task loads it",
    )


def _seconds(compute: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    compute()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - started


def _training(slots: Sequence[Slot], rows: Rows) -> Reads:
    """Return the requests of a training step: the loss of each slot's rows."""
    return {slot.name: Read("train", rows[slot.name], _Losses(slot.data.kind)) for slot in slots}


@dataclass(frozen=True)
class _Losses:
    """Reduces rows to their losses; equal for all trials of a task."""

    kind: TaskKind

    def __call__(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        return (self.kind.loss(outputs, batch),)


def _with_prompts(read: Read) -> Read:
    """Return the same request for whole rows, without shared prompts."""
    return read if isinstance(read.source, str) else replace(read, source=read.source.with_prompts())


def _per_row(reduced: Reduced, counts: Mapping[str, int]) -> Tensor:
    """Return one over each row's trial's count, shape (n,), float32."""
    values = [np.full(num_rows, 1 / counts[trial], dtype=np.float32) for trial, num_rows in reduced.trials]
    return torch.from_numpy(np.concatenate(values)).to(reduced.parts[0].device)


def _is_out_of_memory(error: Exception) -> bool:
    # The CPU's allocator raises a bare RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _too_long(longest: int) -> LoraxsError:
    return UsageError(
        f"Memory must hold a pass of one row, but it ran out with a row of {longest} tokens.",
        hint=f"lower the task's `max_length` below {longest}, set `search.precision` to bfloat16, or use a device with"
        " more memory",
    )


def _share_time(slots: Sequence[Slot], tokens: Sequence[int], seconds: float) -> None:
    for slot, share in zip(slots, tokens, strict=True):
        slot.device_s += seconds * share / max(1, sum(tokens))
