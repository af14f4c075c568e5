"""What slots write, in shared batches: rows of several trials in one cache, and a row map of those that are left."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from loraxs_search.errors import UsageError
from loraxs_search.multiplexed import SlotRowMap, segments_of
from loraxs_search.packing.packed_model import PackedModel
from loraxs_search.packing.pass_executor import PassExecutor
from loraxs_search.packing.plan import Indices, Pass, Share
from loraxs_search.tasks.kinds import Write, Written
from loraxs_search.trial import (
    MEMORY_ERRORS,
    OpenRow,
    default_rows,
    is_out_of_memory,
    open_rows,
    write_rows,
    writing_batches,
    written,
)

log = logging.getLogger(__name__)
Writes = Mapping[str, Write]  # requests by trial name


class PackWriter:
    """Continues the prompts of slots that are in place."""

    def __init__(self, packed_model: PackedModel, executor: PassExecutor) -> None:
        self._packed, self._executor = packed_model, executor
        self.max_rows = default_rows(packed_model.device)

    def write(self, writes: Writes) -> dict[str, Written]:
        """Answer requests; a batch for which memory runs out is halved, and later ones are no larger.

        Raises:
            UsageError: memory does not hold one row.
        """
        asked = [(index, slot) for index, slot in enumerate(self._packed.slots) if slot.name in writes]
        own = {slot.name: open_rows(writes[slot.name], slot.data.tokenizer, self._packed.model) for _, slot in asked}
        rows = [row for _, slot in asked for row in own[slot.name]]
        slots = np.repeat([index for index, _ in asked], [len(own[slot.name]) for _, slot in asked])
        left = np.arange(len(rows))
        while len(left):
            left = self._try(rows, slots, left)
        return {name: written(rows_of_slot) for name, rows_of_slot in own.items()}

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _try(self, rows: Sequence[OpenRow], slots: Indices, left: Indices) -> Indices:
        """Write these rows; return those of them for whose batches memory ran out."""
        lengths = np.array([rows[row].max_length for row in left.tolist()])
        chosen = writing_batches(lengths, self.max_rows, self._executor.num_workers)
        batches = [np.sort(left[batch]) for batch in chosen]  # each slot's rows side by side
        passes = [_as_pass(batch, lengths[own]) for batch, own in zip(batches, chosen, strict=True)]

        def compute(worker: int, shared: Pass) -> Indices:
            batch = shared.shares[0].positions
            try:
                with self._packed.prefix.paused():
                    own, groups = [rows[row] for row in batch.tolist()], slots[batch]
                    write_rows(
                        self._packed.model, own, functools.partial(self._computing, worker, groups), groups=groups
                    )
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise _too_long(rows[batch[0]].max_length) from error
                return batch
            return batch[:0]

        failed = self._executor.run(passes, compute)
        if smaller := [len(batch) // 2 for batch in failed if len(batch)]:
            self.max_rows = max(1, min(smaller))
            log.warning("Memory ran out; at most %d rows are written together from now on.", self.max_rows)
            torch.cuda.empty_cache()
        return np.sort(np.concatenate(failed))

    def _computing(self, worker: int, slots: Indices, left: Indices) -> AbstractContextManager[None]:
        """Tell the adapted layers which rows of a batch are left, given the slot of each of its rows."""
        row_map = SlotRowMap(segments_of(slots[left]), self._packed.device)
        return self._packed.context.computing(row_map, worker)


def _too_long(num_tokens: int) -> UsageError:
    return UsageError(
        f"Memory must hold a prompt with what is written behind it, but it ran out with one of {num_tokens} tokens in"
        " all.",
        hint="lower the task's `max_length` or its `generation.max_new_tokens`, set `search.precision` to bfloat16, or"
        " use a device with more memory",
    )


def _as_pass(batch: Indices, lengths: Indices) -> Pass:
    return Pass(int(lengths.max()), (Share(None, batch),))
