"""Passes of slots in place: planned, computed by workers, and made smaller where memory runs out."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from loraxs_search.packing.packed_model import PackedModel
from loraxs_search.packing.pass_executor import PassExecutor
from loraxs_search.packing.passes import Reads, Reduced, run_pass, run_prefix
from loraxs_search.packing.plan import Demand, Indices, Pass, plan_passes
from loraxs_search.packing.slot import Slot
from loraxs_search.records import Split
from loraxs_search.tasks import PreparedTask
from loraxs_search.trial import MEMORY_ERRORS, is_out_of_memory, row_too_long

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

_PADDING_FACTOR = 1.1  # what padding may add to the tokens of a plan
_PASSES_PER_WORKER = (1, 2, 3, 4)  # passes a worker may have in a round


class PassRunner:
    """Computes requests of slots. One caller at a time.

    Args:
        max_tokens: Padded tokens of one pass; see `Pack`.
    """

    def __init__(self, packed_model: PackedModel, executor: PassExecutor, max_tokens: int) -> None:
        self.max_tokens = self._first_max_tokens = max_tokens
        self._packed, self._executor = packed_model, executor

    def begin(self, slots: Sequence[Slot], reads: Reads) -> None:
        """Serve these slots with their current numbers, and get ready for passes that compute these requests."""
        self._packed.place(slots)
        self._packed.begin()
        self._look_ahead(reads)

    def run(
        self, reads: Reads, backward: Callable[[list[Reduced]], None] | None = None
    ) -> list[tuple[Pass, list[Reduced]]]:
        """Compute requests of slots in place, by trial name; return the passes in their order, with what they gave.

        Args:
            backward: Called in the worker's thread with what its pass gave, attached to the graph; there is no graph
                without.
        """

        def compute(worker: int, shared: Pass) -> list[Reduced]:
            if backward is None:
                with torch.inference_mode():
                    return run_pass(self._packed, shared, reads, worker)
            reduced = run_pass(self._packed, shared, reads, worker)
            backward(reduced)
            return [part.detached() for part in reduced]

        passes = self.plan(self.demands(reads))
        return list(zip(passes, self._executor.run(passes, compute), strict=True))

    def demands(self, reads: Reads) -> list[Demand]:
        """Return what is to be planned, in the order in which slots are placed."""
        requests = [(slot, reads[slot.name]) for slot in self._packed.slots if slot.name in reads]
        return [Demand(slot.name, slot.data.lengths(read.source)[read.rows]) for slot, read in requests]

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
        return min((plan_passes(demands, budget) for budget in budgets), key=self._executor.makespan)

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

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _save_memory(self, longest: int, learns: bool) -> bool:
        """Do what makes the next try need less memory; return False where there is nothing left to do."""
        emptied = self._packed.prefix.shrink()
        if emptied or self.max_tokens > longest:
            self.max_tokens = min(self.max_tokens, max(longest, self.max_tokens // 2))
            log.warning("Memory ran out; passes have at most %d tokens from now on.", self.max_tokens)
            return True
        if learns and self._packed.checkpoint_gradients():
            self.max_tokens = self._first_max_tokens  # a token takes much less now
            log.warning("Memory ran out with one row; layers are computed again in backward from now on.")
            return True
        return False

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
            new = self._packed.prefix.missing(data, split, np.concatenate(rows))
            if len(new):
                self._remember(data, split, new)

    def _remember(self, data: PreparedTask, split: Split, rows: Indices) -> None:
        prefix = self._packed.prefix
        passes = self.plan([Demand(0, data.lengths(split)[rows])])
        compute = functools.partial(run_prefix, self._packed.model, prefix, data, split, rows)
        for known, states in self._executor.run(passes, lambda _, shared: compute(shared)):
            prefix.keep(data, split, known, states)
