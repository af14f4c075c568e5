"""Requests of task kinds, computed for any number of adapters at once, and made to fit into memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from loraxs_search.base_model.layers import head_names
from loraxs_search.base_model.reading import joined
from loraxs_search.base_model.tokenizer import max_positions, padding_side
from loraxs_search.engine.generation import generate, generated, open_sequences
from loraxs_search.engine.kv_cache import Decoding, begun_alike, is_worth_sharing, prompt_groups, read_shared
from loraxs_search.engine.passes import (
    CPU_ROWS,
    DEVICE_ROWS,
    MEMORY_ERRORS,
    AdaptedBase,
    ForwardRequests,
    Indices,
    Lengths,
    Pass,
    PassExecutor,
    Reduced,
    Requesters,
    Share,
    base_of,
    is_out_of_memory,
    plan_writing,
    run_pass,
)
from loraxs_search.errors import TrialDivergedError, UsageError
from loraxs_search.records.literals import Split
from loraxs_search.tasks.encoded import EncodedRows, RowSource
from loraxs_search.tasks.kinds import (
    ForwardRequest,
    Generated,
    GenerateRequest,
    Request,
    RequestGenerator,
    run_requests,
)

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
OnText = Callable[[str, int, str], None]
Results = dict[str, tuple[Tensor, ...]]
_Computed = tuple[str, Indices, tuple[Tensor, ...]]  # of some rows of a request, given by their places in it

MAX_TOKENS = 4096  # default for a pass without gradients


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

    def __init__(self, base: AdaptedBase, executor: PassExecutor | None = None, max_tokens: int = MAX_TOKENS) -> None:
        self.max_tokens = self._first_max_tokens = self._largest = max_tokens
        self.max_rows = CPU_ROWS if base.device.type == "cpu" else DEVICE_ROWS  # that are written together
        self._base, self._executor = base, executor or PassExecutor(1)

    def run(
        self, requesters: Requesters, generators: Mapping[str, RequestGenerator[ResultT]], on_text: OnText | None = None
    ) -> dict[str, ResultT | TrialDivergedError]:
        """Compute what task kinds request until each returns its result, or why it diverged; see `compute`."""
        return run_requests(generators, lambda requests: self.compute(requesters, requests, on_text))

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
        self, requesters: Requesters, reads: ForwardRequests, backward: Callable[[list[Reduced]], None] | None = None
    ) -> list[tuple[Pass, list[Reduced]]]:
        """Compute requests; return the passes in their order, with what they gave.

        Args:
            backward: Called in the worker's thread with what its pass gave, attached to the graph; there is no graph
                without.
        """

        def compute(worker: int, shared: Pass) -> list[Reduced]:
            if backward is None:
                with torch.inference_mode():
                    return run_pass(self._base, shared, reads, requesters, worker)
            reduced = run_pass(self._base, shared, reads, requesters, worker)
            backward(reduced)
            return [replace(own, parts=tuple(part.detach() for part in own.parts)) for own in reduced]

        self._base.begin()
        self._look_ahead(requesters, reads)
        asking = {name: own.data for name, own in requesters.items() if name in reads}  # in the order of the requesters
        passes = self.plan({name: data.lengths(reads[name].source)[reads[name].rows] for name, data in asking.items()})
        return list(zip(passes, self._executor.run(passes, compute), strict=True))

    def plan(self, lengths: Mapping[str, Lengths]) -> list[Pass]:
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
                _: int, shared: Pass, data: RowSource = data, split: Split = split, new: Indices = new
            ) -> tuple[Indices, tuple[Tensor, ...]]:
                chosen = new[shared.shares[0].positions]
                batch = data.collate(split, chosen).to(self._base.device)
                inputs = joined([batch.inputs], shared.width, int(config.pad_token_id), padding_side(config))
                return chosen, prefix.compute(inputs, data.lengths(split)[chosen])

            if len(new):
                for known, states in self._executor.run(self.plan({"": data.lengths(split)[new]}), compute):
                    prefix.keep(data, split, known, states)

    # ---- reading -----------------------------------------------------------------------------------------------------
    def _read(self, requesters: Requesters, reads: ForwardRequests) -> Results:
        sources = {name: requesters[name].data.encoded(read.source) for name, read in reads.items()}
        # A head reads whole rows; where passes skip and prune layers, a cache would need these whole.
        if len(reads) == 1 and self._base.prefix is None and not head_names(base_of(self._base.model)):
            ((name, read),) = reads.items()
            begun, rest = begun_alike(self._base, requesters[name].owner, sources[name].take(read.rows))
            if begun is not None:
                alike = {name: replace(read, source=rest, rows=np.arange(len(rest)))}
                return self._read_behind(requesters, alike, {name: rest}, begun)
        shared = {name: read for name, read in reads.items() if is_worth_sharing(sources[name], read.rows)}
        whole = {
            name: read if isinstance(read.source, str) else replace(read, source=read.source.with_prompts())
            for name, read in reads.items()
            if name not in shared
        }

        def compute() -> list[_Computed]:
            computed: list[_Computed] = []
            for planned, outputs in self.run_passes(requesters, whole):
                rows = [zip(*(own.split(part.cpu()) for part in own.parts), strict=True) for own in outputs]
                for share, parts in zip(planned.shares, chain.from_iterable(rows), strict=True):
                    computed.append((share.name, share.positions, parts))
            return computed

        results: Results = {}
        if whole:
            longest = max(int(requesters[name].data.lengths(r.source)[r.rows].max()) for name, r in whole.items())
            results |= _in_order(self.within_memory(longest, compute))
        return results | (self._read_behind(requesters, shared, sources) if shared else {})

    def _read_behind(
        self,
        requesters: Requesters,
        reads: ForwardRequests,
        sources: Mapping[str, EncodedRows],
        begun: Decoding | None = None,
    ) -> Results:
        """Compute rows behind the prompts that they share, prompt by prompt, each with all rows that continue it.

        Args:
            begun: What all rows of the one request begin with, which its source lacks.
        """
        groups = {name: prompt_groups(sources[name], reads[name].rows) for name in requesters if name in reads}
        lengths = {name: np.array([tokens for tokens, _ in own]) for name, own in groups.items()}

        def compute(worker: int, shared: Pass) -> list[_Computed]:
            names = [share.name for share in shared.shares]
            chosen = [
                np.concatenate([groups[share.name][i][1] for i in share.positions.tolist()]) for share in shared.shares
            ]
            rows = [reads[name].rows[own] for name, own in zip(names, chosen, strict=True)]
            parts = [sources[name].take(own) for name, own in zip(names, rows, strict=True)]
            outputs = read_shared(self._base, parts, [requesters[name].owner for name in names], worker, begun)
            results = list[_Computed]()
            for name, own, numbers, output in zip(names, chosen, rows, outputs, strict=True):
                batch = requesters[name].data.collate(sources[name], numbers).to(self._base.device)
                with torch.inference_mode():
                    results.append((name, own, tuple(value.cpu() for value in reads[name].reduce(output, batch))))
            return results

        def run() -> list[_Computed]:
            self._base.begin()
            return [own for results in self._executor.run(self.plan(lengths), compute) for own in results]

        return _in_order(self.within_memory(max(int(own.max()) for own in lengths.values()), run))

    # ---- writing -----------------------------------------------------------------------------------------------------
    def _write(
        self, requesters: Requesters, writes: Mapping[str, GenerateRequest], on_text: OnText | None
    ) -> dict[str, Generated]:
        """Continue prompts; a batch for which memory runs out is halved, and later ones are no larger.

        Raises:
            RowTooLongError: memory does not hold one row.
        """
        asked = {name: own for name, own in requesters.items() if name in writes}
        rows = {
            name: open_sequences(
                writes[name],
                own.data.tokenizer,
                self._base.model,
                functools.partial(on_text, name) if on_text else None,
            )
            for name, own in asked.items()
        }
        sequences = [row for own in rows.values() for row in own]
        owners = np.repeat([own.owner for own in asked.values()], [len(own) for own in rows.values()])
        lengths = np.array([row.max_length for row in sequences])

        def compute(worker: int, shared: Pass) -> Indices:
            """Write a batch; return its rows if memory ran out."""
            batch = shared.shares[0].positions
            try:
                generate(self._base, [sequences[row] for row in batch.tolist()], owners[batch], worker)
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise RowTooLongError(
                        "Memory must hold a prompt with what is written behind it, but it ran out with one of"
                        f" {lengths[batch[0]]} tokens in all.",
                        hint="lower the task's `max_length` or its `generation.max_new_tokens`, set `search.precision`"
                        " to bfloat16, or use a device with more memory",
                    ) from error
                return batch
            return batch[:0]

        left = np.arange(len(sequences))
        while len(left):
            chosen = plan_writing(lengths[left], self.max_rows, self._executor.num_workers)
            # Each owner's rows side by side.
            passes = [Pass(int(lengths[left[own]].max()), (Share("", np.sort(left[own])),)) for own in chosen]
            failed = self._executor.run(passes, compute)
            if smaller := [len(batch) // 2 for batch in failed if len(batch)]:
                self.max_rows = max(1, min(smaller))
                log.warning("Memory ran out; at most %d rows are written together from now on.", self.max_rows)
                torch.cuda.empty_cache()
            left = np.sort(np.concatenate(failed))
        return {name: generated(own) for name, own in rows.items()}


def _in_order(computed: list[_Computed]) -> Results:
    """Return each request's results in the order of its rows."""
    results: Results = {}
    parts: dict[str, list[Any]] = {}
    for name, *part in computed:
        parts.setdefault(name, []).append(part)
    for name, own in parts.items():
        positions, values = zip(*own, strict=True)
        order = torch.from_numpy(np.argsort(np.concatenate(positions)))
        results[name] = tuple(torch.cat(column)[order] for column in zip(*values, strict=True))
    return results
