"""What slots read behind shared prompts: prompts of several trials in one pass, then the rows that continue them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from loraxs_search.multiplexed import SlotRowMap, segments_of
from loraxs_search.packing.packed_model import PackedModel
from loraxs_search.packing.pass_executor import PassExecutor
from loraxs_search.packing.plan import Demand, Indices, Pass
from loraxs_search.tasks.kinds import Read
from loraxs_search.trial import in_row_order, prompt_groups, read_shared

Plan = Callable[[Sequence[Demand]], list[Pass]]


class PromptReader:
    """Answers `Read` requests of slots that are in place, whose rows share prompts."""

    def __init__(self, packed_model: PackedModel, executor: PassExecutor) -> None:
        self._packed, self._executor = packed_model, executor

    def read(self, reads: Mapping[str, Read], plan: Plan) -> dict[str, tuple[Tensor, ...]]:
        """Compute requests by trial name.

        Args:
            plan: Spreads prompts over passes, each with the rows that continue it, as if it were one row of as many
                tokens.
        """
        slots = {slot.name: (i, slot.data) for i, slot in enumerate(self._packed.slots) if slot.name in reads}
        sources = {name: data.encoded(reads[name].source) for name, (_, data) in slots.items()}
        groups = {name: prompt_groups(source, reads[name].rows) for name, source in sources.items()}
        demands = [Demand(name, np.array([tokens for tokens, _ in own])) for name, own in groups.items()]

        def compute(worker: int, shared: Pass) -> list[tuple[str, Indices, tuple[Tensor, ...]]]:
            names = [str(share.trial) for share in shared.shares]
            chosen = [
                np.concatenate([groups[name][i][1] for i in share.positions.tolist()])
                for name, share in zip(names, shared.shares, strict=True)
            ]
            rows = [reads[name].rows[own] for name, own in zip(names, chosen, strict=True)]
            parts = [sources[name].take(own) for name, own in zip(names, rows, strict=True)]
            indices = np.array([slots[name][0] for name in names])
            with self._packed.prefix.paused():
                outputs = read_shared(
                    self._packed.model, parts, lambda part_of: self._computing(indices[part_of], worker)
                )
            results = []
            for name, own, numbers, output in zip(names, chosen, rows, outputs, strict=True):
                batch = slots[name][1].collate(sources[name], numbers).to(self._packed.device)
                with torch.inference_mode():
                    parts_of_rows = reads[name].reduce(output, batch)
                results.append((name, own, tuple(part.cpu() for part in parts_of_rows)))
            return results

        computed: dict[str, list[tuple[Indices, tuple[Tensor, ...]]]] = {name: [] for name in reads}
        for results in self._executor.run(plan(demands), compute):
            for name, own, values in results:
                computed[name].append((own, values))
        return {
            name: in_row_order([own for own, _ in done], [values for _, values in done])
            for name, done in computed.items()
        }

    def _computing(self, slots: Indices, worker: int) -> AbstractContextManager[None]:
        return self._packed.context.computing(SlotRowMap(segments_of(slots), self._packed.device), worker)
