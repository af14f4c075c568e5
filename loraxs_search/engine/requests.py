"""Requests of task kinds, computed for any number of adapters at once, and made to fit into memory."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from loraxs_search.base_model.reading import max_positions
from loraxs_search.engine.generation import (
    OpenSequence,
    default_rows,
    generate,
    generated,
    generation_batches,
    open_sequences,
)
from loraxs_search.engine.kv_cache import Decoding
from loraxs_search.engine.out_of_memory import MEMORY_ERRORS, generation_too_long, is_out_of_memory, row_too_long
from loraxs_search.engine.passes import AdaptedBase, ForwardRequests, Reduced, Requesters, base_of, run_pass, run_prefix
from loraxs_search.engine.planning import Demand, Indices, Pass, PassExecutor, Share, plan_passes
from loraxs_search.engine.prefix_sharing import begun_alike, is_worth_sharing, prompt_groups, read_shared
from loraxs_search.errors import TrialDivergedError
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

MAX_TOKENS = 4096  # default for a pass without gradients
_PADDING_FACTOR = 1.1  # what padding may add to the tokens of a plan
_PASSES_PER_WORKER = (1, 2, 3, 4)  # passes a worker may have in a round


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
        self.max_rows = default_rows(base.device)  # that are written together
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
        results: dict[str, Any] = self._forward(requesters, reads) if reads else {}
        if writes:
            self._base.begin()
            results |= self._generate(requesters, writes, on_text)
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
            return [part.detached() for part in reduced]

        self._base.begin()
        self._look_ahead(requesters, reads)
        asking = {name: own.data for name, own in requesters.items() if name in reads}  # in the order of the requesters
        demands = [Demand(name, data.lengths(reads[name].source)[reads[name].rows]) for name, data in asking.items()]
        passes = self.plan(demands)
        return list(zip(passes, self._executor.run(passes, compute), strict=True))

    # ---- plans -------------------------------------------------------------------------------------------------------
    def plan(self, demands: Sequence[Demand]) -> list[Pass]:
        """Spread rows over passes."""
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
        max_width = max_positions(base_of(self._base.model).config)
        plans = (plan_passes(demands, budget, max_width=max_width) for budget in budgets)
        passes = min(plans, key=self._executor.makespan)
        self._largest = max((shared.num_tokens for shared in passes), default=0)
        return passes

    def within_memory(self, longest: int, compute: Callable[[], ResultT], *, learns: bool = False) -> ResultT:
        """Compute, and halve the token budget after each failure until the passes fit; a failed try changes nothing.

        Args:
            longest: Tokens of the longest row; the budget is never less.
            learns: Whether there is a backward. Then layers are checkpointed where one row is too much.
        Raises:
            UsageError: memory does not hold one row.
        """
        while True:
            try:
                return compute()
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                if not self._save_memory(longest, learns):
                    raise row_too_long(longest) from error
            torch.cuda.empty_cache()

    def _save_memory(self, longest: int, learns: bool) -> bool:
        """Do what makes the next try need less memory; return False where there is nothing left to do."""
        emptied = self._base.prefix is not None and self._base.prefix.shrink()
        if emptied or self.max_tokens > longest:
            self.max_tokens = min(self.max_tokens, max(longest, min(self.max_tokens, self._largest) // 2))
            log.warning("Memory ran out; passes have at most %d tokens from now on.", self.max_tokens)
            return True
        if learns and self._base.checkpoint_gradients():
            self.max_tokens = self._first_max_tokens  # a token takes much less now
            log.warning("Memory ran out with one row; layers are computed again in backward from now on.")
            return True
        return False

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
        for (data, split), rows in wanted.items():
            new = prefix.missing(data, split, np.concatenate(rows))
            if len(new):
                passes = self.plan([Demand("", data.lengths(split)[new])])
                compute = functools.partial(run_prefix, self._base, prefix, data, split, new)
                for known, states in self._executor.run(passes, lambda _, shared, run=compute: run(shared)):  # type: ignore[misc]
                    prefix.keep(data, split, known, states)

    # ---- reading -----------------------------------------------------------------------------------------------------
    def _forward(self, requesters: Requesters, reads: ForwardRequests) -> dict[str, tuple[Tensor, ...]]:
        sources = {name: requesters[name].data.encoded(read.source) for name, read in reads.items()}
        if len(reads) == 1 and self._base.shares_beginnings:
            ((name, read),) = reads.items()
            begun, rest = begun_alike(self._base, requesters[name].owner, sources[name].take(read.rows))
            if begun is not None:
                alike = {name: replace(read, source=rest, rows=np.arange(len(rest)))}
                return self._forward_behind(requesters, alike, {name: rest}, begun)
        shared = {name: read for name, read in reads.items() if is_worth_sharing(sources[name], read.rows)}
        whole = {
            name: read if isinstance(read.source, str) else replace(read, source=read.source.with_prompts())
            for name, read in reads.items()
            if name not in shared
        }
        results: dict[str, tuple[Tensor, ...]] = {}
        if whole:
            longest = max(int(requesters[name].data.lengths(r.source)[r.rows].max()) for name, r in whole.items())
            results |= self.within_memory(longest, lambda: self._forward_whole(requesters, whole))
        return results | (self._forward_behind(requesters, shared, sources) if shared else {})

    def _forward_whole(self, requesters: Requesters, reads: ForwardRequests) -> dict[str, tuple[Tensor, ...]]:
        computed: dict[str, list[tuple[Indices, tuple[Tensor, ...]]]] = {name: [] for name in reads}
        for shared, outputs in self.run_passes(requesters, reads):
            positions = iter(share.positions for share in shared.shares)
            for reduced in outputs:
                columns = zip(*(reduced.split(part.cpu()) for part in reduced.parts), strict=True)
                for (name, _), parts in zip(reduced.names, columns, strict=True):
                    computed[name].append((next(positions), parts))
        return _ordered(computed)

    def _forward_behind(
        self,
        requesters: Requesters,
        reads: ForwardRequests,
        sources: Mapping[str, EncodedRows],
        begun: Decoding | None = None,
    ) -> dict[str, tuple[Tensor, ...]]:
        """Compute rows behind the prompts that they share, prompt by prompt, each with all rows that continue it.

        Args:
            begun: What all rows of the one request begin with, which its source lacks.
        """
        groups = {name: list(prompt_groups(sources[name], read.rows)) for name, read in reads.items()}
        demands = [
            Demand(name, np.array([tokens for tokens, _ in groups[name]])) for name in requesters if name in reads
        ]

        def compute(worker: int, shared: Pass) -> list[tuple[str, Indices, tuple[Tensor, ...]]]:
            names = [str(share.name) for share in shared.shares]
            chosen = [
                np.concatenate([groups[name][i][1] for i in share.positions.tolist()])
                for name, share in zip(names, shared.shares, strict=True)
            ]
            rows = [reads[name].rows[own] for name, own in zip(names, chosen, strict=True)]
            parts = [sources[name].take(own) for name, own in zip(names, rows, strict=True)]
            outputs = read_shared(self._base, parts, [requesters[name].owner for name in names], worker, begun)
            results = []
            for name, own, numbers, output in zip(names, chosen, rows, outputs, strict=True):
                batch = requesters[name].data.collate(sources[name], numbers).to(self._base.device)
                with torch.inference_mode():
                    values = reads[name].reduce(output, batch)
                results.append((name, own, tuple(value.cpu() for value in values)))
            return results

        def run() -> dict[str, tuple[Tensor, ...]]:
            self._base.begin()
            computed: dict[str, list[tuple[Indices, tuple[Tensor, ...]]]] = {name: [] for name in reads}
            for results in self._executor.run(self.plan(demands), compute):
                for name, own, values in results:
                    computed[name].append((own, values))
            return _ordered(computed)

        return self.within_memory(max(int(demand.lengths.max()) for demand in demands), run)

    # ---- writing -----------------------------------------------------------------------------------------------------
    def _generate(
        self, requesters: Requesters, writes: Mapping[str, GenerateRequest], on_text: OnText | None
    ) -> dict[str, Generated]:
        """Continue prompts; a batch for which memory runs out is halved, and later ones are no larger.

        Raises:
            UsageError: memory does not hold one row.
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
        left = np.arange(len(sequences))
        while len(left):
            left = self._try_generate(sequences, owners, left)
        return {name: generated(own) for name, own in rows.items()}

    def _try_generate(self, sequences: Sequence[OpenSequence], owners: Indices, left: Indices) -> Indices:
        """Continue these sequences; return those of them for whose batches memory ran out."""
        lengths = np.array([sequences[row].max_length for row in left.tolist()])
        chosen = generation_batches(lengths, self.max_rows, self._executor.num_workers)
        # Each owner's rows side by side.
        passes = [Pass(int(lengths[own].max()), (Share("", np.sort(left[own])),)) for own in chosen]

        def compute(worker: int, shared: Pass) -> Indices:
            batch = shared.shares[0].positions
            try:
                generate(self._base, [sequences[row] for row in batch.tolist()], owners[batch], worker)
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise generation_too_long(sequences[batch[0]].max_length) from error
                return batch
            return batch[:0]

        failed = self._executor.run(passes, compute)
        if smaller := [len(batch) // 2 for batch in failed if len(batch)]:
            self.max_rows = max(1, min(smaller))
            log.warning("Memory ran out; at most %d rows are written together from now on.", self.max_rows)
            torch.cuda.empty_cache()
        return np.sort(np.concatenate(failed))


def _ordered(computed: Mapping[str, Sequence[tuple[Indices, tuple[Tensor, ...]]]]) -> dict[str, tuple[Tensor, ...]]:
    """Return each request's results in the order of its rows."""
    results = {}
    for name, parts in computed.items():
        positions, values = zip(*parts, strict=True)
        order = torch.from_numpy(np.argsort(np.concatenate(positions)))
        results[name] = tuple(torch.cat(column)[order] for column in zip(*values, strict=True))
    return results
