"""Requests of task kinds, computed in passes over the base for any number of adapters at once, and made to fit memory.

Rows are spread over as few passes as their lengths allow: rows of similar length share a pass, whoever asks for them.
Passes are computed side by side: on a CPU, whole passes share cores better than the operations in one. What rows begin
with alike is computed once, and its keys and values serve all that continue it. Rows may name prompts that they share;
what all rows begin with, such as worked examples or an instruction, is seen in their tokens.

Letters: n rows, T tokens of each with padding, D the width of hidden states, G prompts, M reads.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loraxs_search.base_model.layers import head_names
from loraxs_search.base_model.reading import Projection, joined, last_states
from loraxs_search.base_model.tokenizer import max_positions, padding_side
from loraxs_search.engine.generation import WORTH, Decoding, Generation, OpenSequence, common_beginning
from loraxs_search.engine.layers import AdaptedBase, Indices, base_of
from loraxs_search.errors import TrialDivergedError, UsageError
from loraxs_search.records.codec import Split
from loraxs_search.tasks.encoded import RUN_TOKENS, EncodedRows, RowSource, cheapest_runs
from loraxs_search.tasks.kinds import ForwardRequest, Generated, GenerateRequest, PassOutputs, Request, RequestGenerator

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

# What to catch when memory runs out; the CPU's allocator raises a bare RuntimeError.
MEMORY_ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether one of `MEMORY_ERRORS` means that memory ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


# ---- plans -----------------------------------------------------------------------------------------------------------
Lengths = npt.NDArray[np.integer]  # tokens of each row, (n,)


@dataclass(frozen=True)
class _Share:
    """What a pass computes for one requester: `positions` into the rows that it asks for, at least one."""

    name: str
    positions: Indices


@dataclass(frozen=True)
class _Pass:
    """Rows that go through the base together, padded to `width` tokens; each requester's rows are one block of it."""

    width: int
    shares: tuple[_Share, ...]

    @property
    def num_tokens(self) -> int:
        """Padded tokens, which is what the base computes."""
        return self.width * sum(len(share.positions) for share in self.shares)


def _round_up(width: int, most: int) -> int:
    """Return the next width that passes are padded to: 16 steps to each doubling, at most `most`.

    Together with rows in powers of two it keeps the shapes of passes few: a CPU's matrix kernels are built for
    each shape, which costs as much as a pass.
    """
    step = 1 << max(0, width.bit_length() - 5)
    return max(width, min(most, -(-width // step) * step))


WRITING_TOKENS = 32768  # of a batch that is written: prompts and what may be written
_JOINING = 4  # further rows join a batch as soon as one part in so many of it is free


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

    def plan(self, lengths: Mapping[str, Lengths], max_tokens: int, max_width: int | None = None) -> list[_Pass]:
        """Plan passes that compute every row exactly once, the longest rows first; depends only on the arguments.

        Passes cost their padded tokens, and `RUN_TOKENS` each; of several plans the one that ends first is taken. Large
        passes need fewer calls, small ones keep every worker busy to the end. A single one is always busy.

        Args:
            lengths: Of the rows that each requester wants computed, by its name.
            max_tokens: No pass has more padded tokens than this, unless it is one row.
            max_width: No row is padded to more tokens than this; None for no limit.
        """
        names, sizes = list(lengths), [len(own) for own in lengths.values()]
        every = np.concatenate([np.maximum(own, 1) for own in lengths.values()]).astype(np.int64)
        owners = np.repeat(np.arange(len(names)), sizes)
        positions = np.concatenate([np.arange(size) for size in sizes])
        order = np.argsort(-every, kind="stable")
        longest, total = int(every.max()), sum(int(own.sum()) for own in lengths.values())
        shares = [
            math.ceil(_PADDING_FACTOR * total / (self.num_workers * parts))
            for parts in (_PASSES_PER_WORKER if self.num_workers > 1 else (1,))
        ]
        plans = list[tuple[int, list[_Pass]]]()  # with what the worker with most to do computes, in tokens
        for budget in dict.fromkeys(max(longest, min(max_tokens, share)) for share in shares):
            most = min(budget, max_width or budget)
            widths = {int(length): _round_up(int(length), most) for length in np.unique(every)}
            passes = []
            for rows in cheapest_runs([widths[length] for length in every[order].tolist()], budget, few_sizes=True):
                chosen = np.sort(order[rows])  # back to the requesters' order, so that each one's rows are one block
                own = tuple(
                    _Share(names[owner], positions[chosen[owners[chosen] == owner]])
                    for owner in dict.fromkeys(owners[chosen].tolist())
                )
                passes.append(_Pass(widths[int(every[chosen].max())], own))
            loads = [sum(passes[i].num_tokens + RUN_TOKENS for i in share) for share in self._assign(passes)]
            plans.append((max(loads), passes))
        return min(plans, key=itemgetter(0))[1]

    def run(self, passes: Sequence[_Pass], compute: Callable[[int, _Pass], ResultT]) -> list[ResultT]:
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

    def _assign(self, passes: Sequence[_Pass]) -> list[list[int]]:
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


# ---- what rows begin with alike --------------------------------------------------------------------------------------
def _is_worth_sharing(source: EncodedRows, rows: Indices) -> bool:
    """Return whether these rows are computed faster with shared prompts than whole; False where they share none."""
    if source.prompts is None or source.prompt_of is None:
        return False
    whole = source.lengths[rows].sum() + source.prompts.lengths[source.prompt_of[rows]].sum()
    return bool(whole > WORTH * sum(tokens for tokens, _ in _prompt_groups(source, rows)))


def _prompt_groups(source: EncodedRows, rows: Indices) -> list[tuple[int, Indices]]:
    """Return for each prompt how many tokens it and its rows have, and the places in `rows` that continue it.

    Rows without prompts are each by themselves.
    """
    if source.prompts is None or source.prompt_of is None:
        return [(int(tokens), np.array([place])) for place, tokens in enumerate(source.lengths[rows])]
    prompt_of_n = source.prompt_of[rows]
    order = np.argsort(prompt_of_n, kind="stable")
    edges = np.flatnonzero(np.diff(prompt_of_n[order])) + 1
    groups = np.split(order, edges)
    lengths, before = source.lengths[rows], source.prompts.lengths
    return [(int(before[prompt_of_n[own[0]]] + lengths[own].sum()), own) for own in groups]


def _beginning_of(rows: EncodedRows) -> int:
    """Return with how many equal tokens all rows begin, if it is worth computing them apart; else 0.

    Nothing is read of them: at least the first token that is read follows in each row, or a prompt's rows.
    """
    if rows.positions is None or len(rows) < 2:  # a head reads whole rows
        return 0
    if rows.prompts is None or rows.prompt_of is None:
        size = int(rows.positions.values[rows.positions.starts].min())
        size = common_beginning([rows.ids.row(i)[:size] for i in range(len(rows))])
        whole, count = int(rows.lengths.sum()), len(rows)
    else:
        used = np.unique(rows.prompt_of).tolist()
        size = common_beginning([rows.prompts.row(i) for i in used])
        whole, count = sum(tokens for tokens, _ in _prompt_groups(rows, np.arange(len(rows)))), len(used)
    return size if whole > WORTH * (whole - size * (count - 1)) else 0


# ---- the engine ------------------------------------------------------------------------------------------------------
OnText = Callable[[str, int, str], None]
_Results = dict[str, tuple[Tensor, ...]]
_Computed = tuple[_Share, tuple[Tensor, ...]]  # results of some rows of a request


class RowTooLongError(UsageError):
    """Memory does not hold a row, with whatever else must be there."""


class Engine:
    """Computes requests, each of a requester by its name. One caller at a time.

    Results depend only on a requester's rows and adapter, up to the rounding of shared passes.

    Args:
        executor: Threads for passes side by side; None computes one pass at a time in the caller's thread.
        max_tokens: Padded tokens of one pass; halved, and halved again, when memory runs out. A longer row is computed
            by itself; where memory runs out even then, training checkpoints the layers.
    """

    def __init__(self, base: AdaptedBase, executor: PassExecutor | None = None, max_tokens: int = 4096) -> None:
        self.max_tokens = self._first_max_tokens = self._largest = max_tokens
        self.max_rows = 64 if base.device.type == "cpu" else 256  # that are written together
        self._base, self._executor = base, executor or PassExecutor(1)

    def run(
        self, requesters: Requesters, generators: Mapping[str, RequestGenerator[ResultT]], on_text: OnText | None = None
    ) -> dict[str, ResultT | TrialDivergedError]:
        """Compute what task kinds request until each returns its result, or why it diverged; see `compute`.

        The requests of all generators that wait are computed at once.
        """
        done: dict[str, ResultT | TrialDivergedError] = {}
        results: Mapping[str, Any] = dict.fromkeys(generators)
        while results:
            waiting = dict[str, Request]()
            for name, result in results.items():
                try:
                    waiting[name] = generators[name].send(result)
                except StopIteration as stop:
                    done[name] = stop.value
                except TrialDivergedError as error:
                    done[name] = error
            results = self.compute(requesters, waiting, on_text) if waiting else {}
        return done

    def compute(
        self, requesters: Requesters, requests: Mapping[str, Request], on_text: OnText | None = None
    ) -> dict[str, Any]:
        """Return the results of requests: tensors on the CPU, rows first, or what was written.

        Args:
            on_text: Called with a requester's name, a row's number in its request, and each piece of its text.
        """
        reads = {name: request for name, request in requests.items() if isinstance(request, ForwardRequest)}
        writes = {name: request for name, request in requests.items() if isinstance(request, GenerateRequest)}
        results: dict[str, Any] = dict(self._read(requesters, reads)) if reads else {}
        if writes:
            self._base.begin()
            results |= self._write(requesters, writes, on_text)
        return results

    def run_passes(
        self, requesters: Requesters, reads: ForwardRequests, weights: Mapping[str, float] | None = None
    ) -> list[_Computed]:
        """Compute requests; return what the passes gave, in their order, and on the CPU where nothing is learnt.

        Args:
            weights: Of each row's first result, by the requester's name: the gradients of their weighted sum are
                computed. None computes no gradients.
        """

        def compute(worker: int, shared: _Pass) -> list[tuple[tuple[_Share, ...], tuple[Tensor, ...]]]:
            if weights is None:
                with torch.inference_mode():
                    return self._compute_pass(requesters, reads, shared, worker)
            reduced, grads = self._compute_pass(requesters, reads, shared, worker), list[Tensor]()
            for shares, (values, *_) in reduced:
                own = np.array([weights[share.name] for share in shares], np.float32)
                grads.append(torch.from_numpy(np.repeat(own, [len(it.positions) for it in shares])).to(values.device))
            torch.autograd.backward([parts[0] for _, parts in reduced], grads)
            return [(shares, tuple(part.detach() for part in parts)) for shares, parts in reduced]

        self._base.begin()
        self._look_ahead(requesters, reads)
        asking = {name: own.data for name, own in requesters.items() if name in reads}  # in the order of the requesters
        passes = self.plan({name: data.lengths(reads[name].source)[reads[name].rows] for name, data in asking.items()})
        computed = list[_Computed]()
        for shares, parts in chain.from_iterable(self._executor.run(passes, compute)):
            sizes = [len(share.positions) for share in shares]
            columns = [torch.split(part if weights else part.cpu(), sizes) for part in parts]
            computed += zip(shares, zip(*columns, strict=True), strict=True)
        return computed

    def plan(self, lengths: Mapping[str, Lengths]) -> list[_Pass]:
        """Spread rows of these lengths, by the requester's name, over passes."""
        passes = self._executor.plan(lengths, self.max_tokens, max_positions(base_of(self._base.model).config))
        self._largest = max((shared.num_tokens for shared in passes), default=0)
        return passes

    def within_memory(self, longest: int, compute: Callable[[], ResultT], *, learns: bool = False) -> ResultT:
        """Compute, and halve the token budget after each failure until the passes fit; a failed try changes nothing.

        Args:
            longest: Tokens of the longest row; the budget is never less.
            learns: Whether there is a backward. Then layers are checkpointed where one row is too much.
        Raises:
            RowTooLongError: memory does not hold one row.
        """
        while True:
            try:
                return compute()
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                emptied = self._base.prefix is not None and self._base.prefix.shrink()
                if emptied or self.max_tokens > longest:
                    self.max_tokens = min(self.max_tokens, max(longest, min(self.max_tokens, self._largest) // 2))
                    log.warning("Memory ran out; passes have at most %d tokens from now on.", self.max_tokens)
                elif learns and self._base.checkpoint_gradients():
                    self.max_tokens = self._first_max_tokens  # a token takes much less now
                    log.warning("Memory ran out with one row; layers are computed again in backward from now on.")
                else:
                    raise RowTooLongError(
                        f"Memory must hold a pass of one row, but it ran out with a row of {longest} tokens.",
                        hint=f"lower the task's `max_length` below {longest}, set `search.precision` to bfloat16, or"
                        " use a device with more memory",
                    ) from error
            torch.cuda.empty_cache()

    # ---- reading -----------------------------------------------------------------------------------------------------
    def _compute_pass(
        self, requesters: Requesters, reads: ForwardRequests, shared: _Pass, worker: int
    ) -> list[tuple[tuple[_Share, ...], tuple[Tensor, ...]]]:
        """Compute a planned pass in a worker's thread.

        Returns:
            What `ForwardRequest.reduce` gives for neighbouring rows of one task with one purpose, with the rows of all
            their shares first.
        """
        base, device, config = self._base, self._base.device, base_of(self._base.model).config
        side = padding_side(config)

        def purpose(share: _Share) -> tuple[object, ...]:  # rows of equal purpose are collated and reduced together
            read = reads[share.name]
            source = read.source if isinstance(read.source, str) else id(read.source)
            return requesters[share.name].data, read.reduce, source

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
        inputs = joined([batch.inputs for batch in batches], shared.width, int(config.pad_token_id), side)
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
            # The last read is repeated, and not used, until their number is one of a few: a CPU's matrix kernels are
            # built for each shape.
            more = max(0, _round_up(len(positions), shared.num_tokens) - len(positions))
            positions = torch.cat([positions, positions[-1:].expand(more, 2)])
            num_reads[-1] += more
        with (
            base.context.computing(base.row_map(np.repeat(owners, sizes), worker)),
            base.prefix.skipped(known, inputs) if base.prefix else nullcontext(),
            base.reading(positions, shared.width, np.repeat(owners, num_reads)) as is_cut,
        ):
            outputs = forward(base.model, inputs, positions, is_cut=is_cut)
        reduced, start = list[tuple[tuple[_Share, ...], tuple[Tensor, ...]]](), 0
        for group, batch in zip(groups, batches, strict=True):
            stop = start + (len(batch.counts) if batch.reads is None else len(batch.reads))
            first = group[0].name
            read = outputs.read[start:stop, : requesters[first].num_outputs]
            reduced.append((tuple(group), reads[first].reduce(PassOutputs(read, outputs.project), batch)))
            start = stop
        return reduced

    def _look_ahead(self, requesters: Requesters, reads: ForwardRequests) -> None:
        """Cache the hidden states below the lowest adapted layer, for rows that are not cached yet and still fit.

        This comes before all passes: inside them, the worker that is first would decide whose rounding all others use.
        """
        if (prefix := self._base.prefix) is None:
            return
        wanted: dict[tuple[RowSource, Split], list[Indices]] = {}
        for name, read in reads.items():
            if isinstance(read.source, str):
                wanted.setdefault((requesters[name].data, read.source), []).append(read.rows)
        config = base_of(self._base.model).config
        for (data, split), rows in wanted.items():
            new = prefix.missing(data, split, np.concatenate(rows))

            def compute(
                _: int, shared: _Pass, data: RowSource = data, split: Split = split, new: Indices = new
            ) -> tuple[Indices, tuple[Tensor, ...]]:
                chosen = new[shared.shares[0].positions]
                batch = data.collate(split, chosen).to(self._base.device)
                inputs = joined([batch.inputs], shared.width, int(config.pad_token_id), padding_side(config))
                return chosen, prefix.compute(inputs, data.lengths(split)[chosen])

            if len(new):
                for known, states in self._executor.run(self.plan({"": data.lengths(split)[new]}), compute):
                    prefix.keep(data, split, known, states)

    def _read(self, requesters: Requesters, reads: ForwardRequests) -> _Results:
        base = self._base
        sources = {name: requesters[name].data.encoded(read.source) for name, read in reads.items()}
        # What all rows of one request begin with is computed once. A head reads whole rows; where passes skip and prune
        # layers, a cache would need these whole.
        if len(reads) == 1 and base.prefix is None and not head_names(base_of(base.model)):
            ((name, read),) = reads.items()
            rest = sources[name].take(read.rows)
            size, prompts = _beginning_of(rest), rest.prompts
            begun = Decoding(base.model) if size else None
            if begun is not None and (prompts is None or begun.allows_gaps):
                first = rest.ids.row(0)
                if prompts is not None and rest.prompt_of is not None:
                    first = prompts.row(int(rest.prompt_of[0]))
                with base.context.computing(base.row_map(np.array([requesters[name].owner]))):
                    begun.read([first[:size]])
                rest = rest.behind(size)
                rest = rest if _is_worth_sharing(rest, np.arange(len(rest))) else rest.with_prompts()
                alike = {name: replace(read, source=rest, rows=np.arange(len(rest)))}
                return self._read_behind(requesters, alike, {name: rest}, begun)
        shared = {name: read for name, read in reads.items() if _is_worth_sharing(sources[name], read.rows)}
        whole = {
            name: read if isinstance(read.source, str) else replace(read, source=read.source.with_prompts())
            for name, read in reads.items()
            if name not in shared
        }
        results = self._read_behind(requesters, shared, sources, None) if shared else {}
        if whole:
            longest = max(int(requesters[name].data.lengths(r.source)[r.rows].max()) for name, r in whole.items())
            results |= _in_order(self.within_memory(longest, lambda: self.run_passes(requesters, whole)))
        return results

    def _read_behind(
        self, requesters: Requesters, reads: ForwardRequests, sources: Mapping[str, EncodedRows], begun: Decoding | None
    ) -> _Results:
        """Compute rows behind the prompts that they share, prompt by prompt, each with all rows that continue it.

        Args:
            begun: What all rows of the one request begin with, which its source lacks; it is not changed. Prompts
                continue only from one that allows gaps.
        """
        base = self._base
        groups = {name: _prompt_groups(sources[name], reads[name].rows) for name in requesters if name in reads}
        lengths = {name: np.array([tokens for tokens, _ in own]) for name, own in groups.items()}

        @torch.inference_mode()
        def compute(worker: int, shared: _Pass) -> list[_Computed]:
            chosen = [np.concatenate([groups[own.name][i][1] for i in own.positions.tolist()]) for own in shared.shares]
            shares = [_Share(own.name, places) for own, places in zip(shared.shares, chosen, strict=True)]
            parts = [sources[own.name].take(reads[own.name].rows[own.positions]) for own in shares]
            owner_of_part = np.array([requesters[own.name].owner for own in shares])
            part_of_n = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            # The prompts of all parts, which a part does not share with others; of which part each is; which of them
            # each row continues. Rows without prompts continue one without tokens.
            ids, part_of_G, prompt_of_n = list[npt.NDArray[np.int32]](), list[int](), list[Indices]()
            for number, part in enumerate(parts):
                prompt_of = np.zeros(len(part)) if part.prompt_of is None else part.prompt_of
                used, own_prompt = np.unique(prompt_of, return_inverse=True)
                prompt_of_n.append(own_prompt + len(ids))
                ids += [np.empty(0, np.int32) if part.prompts is None else part.prompts.row(int(i)) for i in used]
                part_of_G += [number] * len(used)
            has_prompts = any(len(prompt) for prompt in ids)
            first = np.array(part_of_G) if has_prompts else part_of_n
            decoding = Decoding(base.model) if begun is None else begun.forked(np.zeros(len(first), np.int64))
            if has_prompts:
                with base.context.computing(base.row_map(owner_of_part[first], worker)):
                    decoding.read(ids)
                decoding.select(np.concatenate(prompt_of_n))
            with base.context.computing(base.row_map(owner_of_part[part_of_n], worker)):
                states_nTD = decoding.read([part.ids.row(i) for part in parts for i in range(len(part))], "right")
            results, start = list[_Computed](), 0
            for share, part in zip(shares, parts, strict=True):
                batch = requesters[share.name].data.collate(part, np.arange(len(part))).to(base.device)
                at = part.reads(np.arange(len(part)))
                assert at is not None  # a head reads whole rows
                read = PassOutputs(states_nTD[start + at[:, 0], at[:, 1]], decoding.project)
                results.append((share, tuple(value.cpu() for value in reads[share.name].reduce(read, batch))))
                start += len(part)
            return results

        base.begin()
        longest = max(int(own.max()) for own in lengths.values())
        found = self.within_memory(longest, lambda: self._executor.run(self.plan(lengths), compute))
        return _in_order([*chain.from_iterable(found)])

    # ---- writing -----------------------------------------------------------------------------------------------------
    def _write(
        self, requesters: Requesters, writes: Mapping[str, GenerateRequest], on_text: OnText | None
    ) -> dict[str, Generated]:
        """Continue prompts. Rows join a batch as others end; one for which memory runs out is halved from then on.

        Raises:
            RowTooLongError: memory does not hold one row.
        """
        asked = {name: own for name, own in requesters.items() if name in writes}
        rows = {
            name: OpenSequence.of(
                writes[name],
                own.data.tokenizer,
                self._base.model,
                functools.partial(on_text, name) if on_text else None,
            )
            for name, own in asked.items()
        }
        sequences = [row for own in rows.values() for row in own]
        owners = np.repeat([own.owner for own in asked.values()], [len(own) for own in rows.values()])
        lengths = np.array([sum(row.span) for row in sequences])  # that each may have in the end

        def compute(worker: int, shared: _Pass) -> tuple[list[int], int]:
            """Write rows; return those that are left where memory runs out, and how many were written side by side."""
            waiting: list[int] = shared.shares[0].positions.tolist()
            for row in waiting:
                sequences[row].begin()  # anew where memory ran out
            generation, active, most = Generation(self._base, worker), list[int](), 0
            try:
                while waiting or active:
                    longest = max(int(lengths[row]) for row in (*active, *waiting[:1]))
                    room = max(1, min(self.max_rows, WRITING_TOKENS // longest))
                    free = room - len(active)
                    if waiting and (not active or (generation.can_be_joined and free * _JOINING >= room)):
                        joining, waiting = sorted(waiting[:free]), waiting[free:]  # each owner's rows side by side
                        active += joining
                        most = max(most, len(active))
                        generation.join([sequences[row] for row in joining], owners[joining])
                    else:
                        generation.step()
                    active = [row for row in active if not sequences[row].is_over]
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                if most == 1:
                    raise RowTooLongError(
                        "Memory must hold a prompt with what is written behind it, but it ran out with one of"
                        f" {lengths[active[0]]} tokens in all.",
                        hint="lower the task's `max_length` or its `generation.max_new_tokens`, set `search.precision`"
                        " to bfloat16, or use a device with more memory",
                    ) from error
                return active + waiting, most
            return [], 0

        left = np.arange(len(sequences))
        while len(left):
            left = left[np.argsort(-lengths[left], kind="stable")]  # longest first, dealt to the workers
            dealt = [left[worker :: self._executor.num_workers] for worker in range(self._executor.num_workers)]
            passes = [_Pass(int(lengths[own[0]]), (_Share("", own),)) for own in dealt if len(own)]
            failed = self._executor.run(passes, compute)
            if smaller := [most // 2 for rows_left, most in failed if rows_left]:
                self.max_rows = max(1, min(smaller))
                log.warning("Memory ran out; at most %d rows are written together from now on.", self.max_rows)
                torch.cuda.empty_cache()
            left = np.array([row for rows_left, _ in failed for row in rows_left], np.int64)
        return {name: OpenSequence.results(own) for name, own in rows.items()}


def _in_order(computed: Sequence[_Computed]) -> _Results:
    """Return each request's results in the order of its rows."""
    by_name: dict[str, list[_Computed]] = {}
    for one in computed:
        by_name.setdefault(one[0].name, []).append(one)
    results: _Results = {}
    for name, own in by_name.items():
        order = torch.from_numpy(np.argsort(np.concatenate([share.positions for share, _ in own])))
        columns = zip(*(values for _, values in own), strict=True)
        results[name] = tuple(torch.cat(column)[order] for column in columns)
    return results


def ask(
    model: torch.nn.Module,
    data: RowSource,
    asking: RequestGenerator[ResultT],
    executor: PassExecutor | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> ResultT:
    """Compute the requests of a task kind until it returns its result.

    Args:
        model: A base as its task loads it, with one adapter on it or none.
        executor: Computes passes side by side; None computes one at a time in the caller's thread.
        on_text: Called with a row's number in its request and each piece of text, as it is written.
    Raises:
        TrialDivergedError: a number is not finite.
    """
    listener = None if on_text is None else lambda _, row, piece: on_text(row, piece)
    (result,) = Engine(AdaptedBase(model), executor).run({"": Requester(0, data)}, {"": asking}, listener).values()
    if isinstance(result, TrialDivergedError):
        raise result
    return result
