"""What slots are asked between steps: requests of their tasks' kinds, computed for many trials at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from loraxs_search.packing.packed_model import PackedModel
from loraxs_search.packing.pass_executor import PassExecutor
from loraxs_search.packing.pass_runner import PassRunner
from loraxs_search.packing.passes import Reads
from loraxs_search.packing.plan import Indices
from loraxs_search.packing.prompt_reading import PromptReader
from loraxs_search.packing.slot import Slot
from loraxs_search.packing.writing import PackWriter
from loraxs_search.tasks.kinds import Read, Request, Write
from loraxs_search.trial import in_row_order, is_worth_sharing, prompt_groups


class PackAnswers:
    """Answers requests of slots. One caller at a time."""

    def __init__(self, packed_model: PackedModel, executor: PassExecutor, runner: PassRunner) -> None:
        self._packed, self._runner = packed_model, runner
        self._prompt_reader = PromptReader(packed_model, executor)
        self._writer = PackWriter(packed_model, executor)

    def answer(self, slots: Sequence[Slot], requests: Mapping[str, Request]) -> dict[str, Any]:
        """Return the results of requests by trial id: tensors on the CPU, rows first, or what was written.

        All slots stay in place, also those that ask for nothing.
        """
        reads = {trial: request for trial, request in requests.items() if isinstance(request, Read)}
        writes = {trial: request for trial, request in requests.items() if isinstance(request, Write)}
        results: dict[str, Any] = self._answer_reads(slots, reads) if reads else {}
        if writes:
            self._runner.begin(slots, {})
            results |= self._writer.write(writes)
        return results

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _answer_reads(self, slots: Sequence[Slot], reads: Reads) -> dict[str, tuple[Tensor, ...]]:
        data = {slot.name: slot.data for slot in slots}
        sources = {trial: data[trial].encoded(read.source) for trial, read in reads.items()}
        shared = {trial: read for trial, read in reads.items() if is_worth_sharing(sources[trial], read.rows)}
        whole = {trial: _with_prompts(read) for trial, read in reads.items() if trial not in shared}
        results: dict[str, tuple[Tensor, ...]] = {}
        if whole:
            longest = max(int(data[trial].lengths(read.source)[read.rows].max()) for trial, read in whole.items())
            results |= self._runner.within_memory(longest, lambda: self._read(slots, whole))
        if shared:
            self._runner.begin(slots, {})
            groups = [prompt_groups(sources[trial], read.rows) for trial, read in shared.items()]
            longest = max(tokens for own in groups for tokens, _ in own)
            read = functools.partial(self._prompt_reader.read, shared, self._runner.plan)
            results |= self._runner.within_memory(longest, read)
        return results

    def _read(self, slots: Sequence[Slot], reads: Reads) -> dict[str, tuple[Tensor, ...]]:
        self._runner.begin(slots, reads)
        computed: dict[str, list[tuple[Indices, tuple[Tensor, ...]]]] = {trial: [] for trial in reads}
        for shared, outputs in self._runner.run(reads):
            positions = iter(share.positions for share in shared.shares)
            for reduced in outputs:
                columns = zip(*(reduced.split(part.cpu()) for part in reduced.parts), strict=True)
                for (trial, _), parts in zip(reduced.trials, columns, strict=True):
                    computed[trial].append((next(positions), parts))
        return {
            trial: in_row_order([positions for positions, _ in parts], [part for _, part in parts])
            for trial, parts in computed.items()
        }


def _with_prompts(read: Read) -> Read:
    """Return the same request for whole rows, without shared prompts."""
    return read if isinstance(read.source, str) else replace(read, source=read.source.with_prompts())
