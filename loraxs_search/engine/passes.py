"""Passes over the base: which rows share one, which thread computes it, and what tasks read of it.

Rows are spread over as few passes as their lengths allow: rows of similar length share a pass, whoever asks for them.
Passes are computed side by side: on a CPU, whole passes share cores better than the operations in one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.layers import head_names
from loraxs_search.base_model.reading import Projection, joined, last_states
from loraxs_search.base_model.tokenizer import padding_side
from loraxs_search.engine.layers import PassContext, RowMap
from loraxs_search.engine.prefix_cache import PrefixCache
from loraxs_search.errors import UsageError
from loraxs_search.tasks.encoded import RUN_TOKENS, RowSource, cheapest_runs
from loraxs_search.tasks.kinds import ForwardRequest, PassOutputs

Indices = npt.NDArray[np.int64]
Owners = npt.NDArray[np.integer]  # whose adapter each row has, (n,), by numbers that the base knows
ResultT = TypeVar("ResultT")

# What to catch when memory runs out; the CPU's allocator raises a bare RuntimeError.
MEMORY_ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether one of `MEMORY_ERRORS` means that memory ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


# ---- plans -----------------------------------------------------------------------------------------------------------
Lengths = npt.NDArray[np.integer]  # tokens of each row, (n,)


@dataclass(frozen=True)
class Share:
    """What a pass computes for one requester: `positions` into the rows that it asks for, ascending, at least one."""

    name: str
    positions: Indices


@dataclass(frozen=True)
class Pass:
    """Rows that go through the base together, padded to `width` tokens; each requester's rows are one block of it."""

    width: int
    shares: tuple[Share, ...]

    @property
    def num_rows(self) -> int:
        return sum(len(share.positions) for share in self.shares)

    @property
    def num_tokens(self) -> int:
        """Padded tokens, which is what the base computes."""
        return self.num_rows * self.width


def plan_passes(lengths: Mapping[str, Lengths], max_tokens: int, max_width: int | None = None) -> list[Pass]:
    """Plan passes that compute every row exactly once, the longest rows first.

    The plan minimises padded tokens plus `RUN_TOKENS` for each pass, and depends only on the arguments. Within a
    pass the requesters come in the order of `lengths`.

    Args:
        lengths: Of the rows that each requester wants computed, by its name.
        max_tokens: No pass has more padded tokens than this.
        max_width: No row is padded to more tokens than this; None for no limit.
    Raises:
        UsageError: a row is longer than `max_tokens`.
    """
    for name, own in lengths.items():
        if len(own) and (longest := int(own.max())) > max_tokens:
            raise UsageError(
                f"`max_tokens` must hold the longest row, but got max_tokens={max_tokens} for a row of {longest} tokens"
                f", asked by {name}.",
                hint=f"lower the task's `max_length` to {max_tokens}, or give the host a budget of {longest} or more",
            )
    names, sizes = list(lengths), [len(own) for own in lengths.values()]
    if not any(sizes):
        return []
    max_width = min(max_tokens, max_width or max_tokens)
    every = np.concatenate([np.maximum(own, 1) for own in lengths.values()]).astype(np.int64)
    owners = np.repeat(np.arange(len(names)), sizes)
    positions = np.concatenate([np.arange(size) for size in sizes])
    order = np.argsort(-every, kind="stable")
    widths = {int(length): _round_up(int(length), max_width) for length in np.unique(every)}
    passes = []
    for rows in cheapest_runs([widths[length] for length in every[order].tolist()], max_tokens, few_sizes=True):
        chosen = np.sort(order[rows])  # back to the requesters' order, so that each one's rows are one block
        shares = tuple(
            Share(names[owner], positions[chosen[owners[chosen] == owner]])
            for owner in dict.fromkeys(owners[chosen].tolist())
        )
        passes.append(Pass(widths[int(every[chosen].max())], shares))
    return passes


def _round_up(width: int, most: int) -> int:
    """Return the next width that passes are padded to: 16 steps to each doubling, at most `most`.

    Together with rows in powers of two it keeps the shapes of passes few: a CPU's matrix kernels are built for
    each shape, which costs as much as a pass.
    """
    step = 1 << max(0, width.bit_length() - 5)
    return max(width, min(most, -(-width // step) * step))


CPU_ROWS, DEVICE_ROWS = 64, 256  # of a batch that is written
MAX_TOKENS = 32768  # of such a batch, prompts and what may be written
_CPU_TOKENS, _DEVICE_TOKENS = 4096, 65536  # of a pass over prompts; larger ones are no faster
_DEVICE_RUN_TOKENS = 4096  # what one more pass costs on an accelerator: a guess, as all that one row takes is calls


def plan_prompts(lengths: Lengths, device: torch.device) -> list[Indices]:
    """Return the rows of each pass over prompts, ascending: little padding in few passes."""
    order = np.argsort(-lengths, kind="stable")
    max_tokens, cost = (_CPU_TOKENS, RUN_TOKENS) if device.type == "cpu" else (_DEVICE_TOKENS, _DEVICE_RUN_TOKENS)
    return [np.sort(order[run]) for run in cheapest_runs(lengths[order].tolist(), max_tokens, cost)]


def plan_writing(lengths: Indices, max_rows: int, num_workers: int = 1) -> list[Indices]:
    """Plan batches that are written: every row exactly once, longest first, as few as may be, and as even as may be.

    Args:
        lengths: Tokens that each row may have in the end, (n,).
        max_rows: No batch has more rows; nor more padded tokens than `MAX_TOKENS`, unless it is one row.
        num_workers: Batches that are written side by side: none of these workers is left without rows.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[Indices] = []
    start = 0
    while start < len(order):
        num_left = len(order) - start
        fitting = max(1, min(max_rows, MAX_TOKENS // int(lengths[order[start]])))
        num_batches = max(-(-num_left // fitting), num_workers - len(batches))
        size = -(-num_left // num_batches)
        batches.append(order[start : start + size])
        start += size
    return batches


_MAX_WORKERS = 4  # more would wait for each other to call into torch
_PADDING_FACTOR = 1.1  # what padding may add to the tokens of a plan
_PASSES_PER_WORKER = (1, 2, 3, 4)  # passes a worker may have in a round


class PassExecutor:
    """A fixed number of workers; which one computes which pass depends on the plan, never on timing.

    So gradients are summed in the same order each time, and a round's numbers are reproducible to the bit.

    Args:
        num_workers: 1 computes in the caller's thread.
        threads: Threads that each worker's operations use.
        pool: Computes the passes, instead of its own threads.
    """

    def __init__(self, num_workers: int, threads: int = 1, pool: ThreadPoolExecutor | None = None) -> None:
        self.num_workers = num_workers
        self._pool = pool if num_workers > 1 else None
        if num_workers > 1 and pool is None:
            # The number of threads is a setting of the calling thread's own.
            self._pool = ThreadPoolExecutor(
                num_workers, "pass-worker", initializer=torch.set_num_threads, initargs=(threads,)
            )

    def plan(self, lengths: Mapping[str, Lengths], max_tokens: int, max_width: int | None = None) -> list[Pass]:
        """Return the plan of passes that ends first; see `plan_passes`. A row beyond `max_tokens` is by itself.

        Large passes need fewer calls, small ones keep every worker busy to the end. A single one is always busy.
        """
        longest = max(int(own.max()) for own in lengths.values())
        total = sum(int(own.sum()) for own in lengths.values())
        shares = [
            math.ceil(_PADDING_FACTOR * total / (self.num_workers * parts))
            for parts in (_PASSES_PER_WORKER if self.num_workers > 1 else (1,))
        ]
        budgets = dict.fromkeys(max(longest, min(max_tokens, share)) for share in shares)
        plans = (plan_passes(lengths, budget, max_width) for budget in budgets)

        def ends(passes: list[Pass]) -> int:  # what the worker with most to do computes, in tokens
            shares = self._assign(passes)
            return max(sum(passes[i].num_tokens + RUN_TOKENS for i in share) for share in shares)

        return min(plans, key=ends)

    def run(self, passes: Sequence[Pass], compute: Callable[[int, Pass], ResultT]) -> list[ResultT]:
        """Call `compute(worker, pass)` for every pass and return the results in the order of `passes`.

        An exception of any worker is raised once all workers are done.
        """
        shares = self._assign(passes)

        def work(worker: int) -> list[tuple[int, ResultT]]:
            return [(index, compute(worker, passes[index])) for index in shares[worker]]

        if self._pool is None:
            return [result for _, result in work(0)]
        futures: list[Future[list[tuple[int, ResultT]]]] = [
            self._pool.submit(work, worker) for worker in range(self.num_workers) if shares[worker]
        ]
        wait(futures)
        results = dict(item for future in futures for item in future.result())
        return [results[index] for index in range(len(passes))]

    def _assign(self, passes: Sequence[Pass]) -> list[list[int]]:
        """Give each pass, largest first, to the worker with least to do; each keeps the order of `passes`."""
        shares: list[list[int]] = [[] for _ in range(self.num_workers)]
        loads = [0] * self.num_workers
        for index in sorted(range(len(passes)), key=lambda i: -passes[i].num_tokens):
            worker = loads.index(min(loads))
            shares[worker].append(index)
            loads[worker] += passes[index].num_tokens
        return [sorted(share) for share in shares]


def workers_for(device: torch.device) -> tuple[int, int]:
    """Return how many workers suit a device, and the threads of each: on a CPU up to four share its threads."""
    if device.type != "cpu":
        return 1, 1
    threads = torch.get_num_threads()
    num_workers = min(threads, _MAX_WORKERS)
    return num_workers, threads // num_workers


# ---- bases -----------------------------------------------------------------------------------------------------------
def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the base that a model is, or that carries its adapters."""
    return cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)


class AdaptedBase:
    """A base whose rows all have one adapter, as PEFT puts it on, or none. Subclasses know many.

    Several threads may compute passes at the same time; `begin` and `checkpoint_gradients` are called between passes.

    Args:
        model: The base as its task loads it, with or without adapters on it.
        context: Where adapted layers find the rows of their pass.
    """

    prefix: PrefixCache | None = None

    def __init__(self, model: nn.Module, context: PassContext | None = None) -> None:
        self.model, self.context = model, context or PassContext()

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return next(self.model.parameters()).device

    def begin(self) -> None:
        """Read the adapters' current numbers, and set gradients to zero."""

    def row_map(self, owners: Owners) -> RowMap[Any] | None:
        """Return the rows of a pass; those of one owner stand side by side."""
        return None

    @contextmanager
    def computing_whole(self, row_map: RowMap[Any] | None, worker: int = 0) -> Iterator[None]:
        """Set the rows of a pass that skips no layer, since a cache needs the keys and values of all."""
        with self.prefix.paused() if self.prefix else nullcontext(), self.context.computing(row_map, worker):
            yield

    @contextmanager
    def reading(self, reads: Tensor | None, width: int, owners: Owners) -> Iterator[bool]:
        """Compute no more of the topmost layer than this thread's pass reads, where that can be; yield whether it is.

        Args:
            reads: Row and column of each read, (M, 2); None if a head reads.
            width: T, the tokens of each row, padding included.
            owners: Whose each read is, (M,).
        """
        yield False

    def checkpoint_gradients(self) -> bool:
        """Compute layers again in backward from now on, to save memory; return whether that is new and possible."""
        return False


@dataclass(frozen=True)
class Requester:
    """Whose requests are computed.

    Args:
        owner: Whose adapter the rows have, as `AdaptedBase.row_map` numbers them.
        data: Where the rows of requests are from.
        num_outputs: Of the head; what is wider is cut. None if there is no head, or only one adapter.
    """

    owner: int
    data: RowSource
    num_outputs: int | None = None


ForwardRequests = Mapping[str, ForwardRequest]  # by the requester's name
Requesters = Mapping[str, Requester]


# ---- passes ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Reduced:
    """Results of neighbouring rows that are reduced together: those of one task with one purpose.

    Args:
        names: The requesters' names with their number of rows, in order.
        parts: Results of `ForwardRequest.reduce`, each with the n rows first.
    """

    names: tuple[tuple[str, int], ...]
    parts: tuple[Tensor, ...]

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Cut a tensor of n rows into each requester's."""
        parts: tuple[Tensor, ...] = torch.split(tensor, [count for _, count in self.names])
        return parts


def forward(
    model: torch.nn.Module, inputs: dict[str, Tensor], reads: Tensor | None, *, is_cut: bool = False
) -> PassOutputs:
    """Compute rows, and no logits where only hidden states are read.

    Args:
        model: A base as its task loads it, with or without adapters on it.
        inputs: What the model takes, (n, T), on its device.
        reads: Row and column of each read, (M, 2); None if the base's head gives one output a row.
        is_cut: Whether nothing but the reads leaves the body, (1, M, width).
    """
    base = base_of(model)
    if reads is None or head_names(base):
        logits = model(**inputs).logits.float()  # (n, outputs), or (n, T, outputs)
        return PassOutputs(logits if reads is None else logits[reads[:, 0], reads[:, 1]])
    states = last_states(base, inputs)
    return PassOutputs(states[0] if is_cut else states[reads[:, 0], reads[:, 1]], Projection(base))


def run_pass(
    base: AdaptedBase, shared: Pass, reads: ForwardRequests, requesters: Requesters, worker: int
) -> list[Reduced]:
    """Compute a planned pass in a worker thread; its positions are those of each request."""
    model, device = base_of(base.model), base.device
    side, pad_id = padding_side(model.config), int(model.config.pad_token_id)

    def purpose(share: Share) -> tuple[object, ...]:  # rows of equal purpose are collated and reduced together
        source = reads[share.name].source
        return requesters[share.name].data, reads[share.name].reduce, source if isinstance(source, str) else id(source)

    groups = [list(group) for _, group in groupby(shared.shares, key=purpose)]
    known = [
        (
            requesters[group[0].name].data,
            reads[group[0].name].source,
            np.concatenate([reads[share.name].rows[share.positions] for share in group]),
        )
        for group in groups
    ]
    batches = [data.collate(source, rows).to(device) for data, source, rows in known]
    inputs = joined([batch.inputs for batch in batches], shared.width, pad_id, side)
    owners = [requesters[share.name].owner for share in shared.shares]
    sizes = [len(share.positions) for share in shared.shares]
    of_shares = [requesters[share.name].data.encoded(reads[share.name].source) for share in shared.shares]
    num_reads = [
        int(encoded.counts(reads[share.name].rows[share.positions]).sum())
        for encoded, share in zip(of_shares, shared.shares, strict=True)
    ]
    positions = None
    if all(batch.reads is not None for batch in batches):
        # Row and column of each read among the rows of all batches, (M, 2).
        starts = np.cumsum([0, *(len(batch.counts) for batch in batches)])
        moved = [0 if side == "right" else shared.width - batch.inputs["input_ids"].shape[1] for batch in batches]
        places = zip(batches, starts[:-1].tolist(), moved, strict=True)
        positions = torch.cat([cast("Tensor", own.reads) + torch.tensor(at, device=device) for own, *at in places])
        # The last read is repeated, and not used, until their number is one of a few: a CPU's matrix kernels are built
        # for each shape.
        more = max(0, _round_up(len(positions), shared.num_tokens) - len(positions))
        positions = torch.cat([positions, positions[-1:].expand(more, 2)])
        num_reads[-1] += more
    with (
        base.context.computing(base.row_map(np.repeat(owners, sizes)), worker),
        base.prefix.skipped(known, inputs) if base.prefix else nullcontext(),
        base.reading(positions, shared.width, np.repeat(owners, num_reads)) as is_cut,
    ):
        outputs = forward(base.model, inputs, positions, is_cut=is_cut)
    reduced, start = [], 0
    for group, batch in zip(groups, batches, strict=True):
        stop = start + (len(batch.counts) if batch.reads is None else len(batch.reads))
        first = group[0].name
        read = outputs.read[start:stop, : requesters[first].num_outputs]
        parts = reads[first].reduce(PassOutputs(read, outputs.project), batch)
        reduced.append(Reduced(tuple((share.name, len(share.positions)) for share in group), parts))
        start = stop
    return reduced
