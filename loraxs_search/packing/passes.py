"""One pass over the base: computes rows of several slots, and returns what their tasks read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraxs_search.base_model import joined, padding_side
from loraxs_search.multiplexed import RowSegment, SlotRowMap
from loraxs_search.packing.packed_model import PackedModel
from loraxs_search.packing.plan import Indices, Pass, round_up
from loraxs_search.packing.prefix_cache import CachedRows, PrefixCache
from loraxs_search.records import Split
from loraxs_search.tasks import Batch, PreparedTask
from loraxs_search.tasks.kinds import PassOutputs, Read, Reduce
from loraxs_search.trial import forward

Reads = Mapping[str, Read]  # requests by trial name


@dataclass(frozen=True)
class Reduced:
    """Results of neighbouring rows that are reduced together: those of one task with one purpose.

    Args:
        trials: The slots' ids with their number of rows, in order.
        parts: Results of `Read.reduce`, each with the n rows first.
    """

    trials: tuple[tuple[str, int], ...]
    parts: tuple[Tensor, ...]

    def detached(self) -> Reduced:
        """Return the same numbers, detached from the graph."""
        return replace(self, parts=tuple(part.detach() for part in self.parts))

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Cut a tensor of n rows into each trial's."""
        parts: tuple[Tensor, ...] = torch.split(tensor, [count for _, count in self.trials])
        return parts


@dataclass(frozen=True)
class _Part:
    """The rows that one trial has in a pass."""

    slot: int
    trial: str
    data: PreparedTask
    request: Read
    rows: Indices

    @property
    def purpose(self) -> tuple[PreparedTask, Reduce, object]:
        """Rows of equal purpose are collated and reduced together."""
        source = self.request.source
        return self.data, self.request.reduce, source if isinstance(source, str) else id(source)

    @property
    def num_reads(self) -> int:
        return int(self.data.encoded(self.request.source).counts(self.rows).sum())


def run_pass(packed_model: PackedModel, shared: Pass, reads: Reads, worker: int) -> list[Reduced]:
    """Compute a planned pass in a worker thread; its positions are those of each trial's request."""
    model, device = packed_model.model, packed_model.device
    parts = _parts(packed_model, shared, reads)
    groups = [list(group) for _, group in groupby(parts, key=lambda part: part.purpose)]
    rows = [np.concatenate([part.rows for part in group]) for group in groups]
    batches = [
        group[0].data.collate(group[0].request.source, indices).to(device)
        for group, indices in zip(groups, rows, strict=True)
    ]
    inputs = _join([batch.inputs for batch in batches], shared.width, model)
    known = [
        CachedRows(group[0].data, group[0].request.source, indices) for group, indices in zip(groups, rows, strict=True)
    ]
    positions = _positions(batches, shared.width, padding_side(model.config))
    positions, sizes = _evened(positions, [part.num_reads for part in parts], shared.num_tokens)
    computing = packed_model.context.computing(_row_map(parts, [len(part.rows) for part in parts], device), worker)
    with computing, packed_model.prefix.skipped(known, inputs):
        reading = packed_model.reading(positions, shared.width, _row_map(parts, sizes, device))
        with reading as is_cut:
            outputs = forward(model, inputs, positions, is_cut=is_cut)
    return _reduced(groups, batches, outputs)


def run_prefix(
    model: PreTrainedModel, prefix: PrefixCache, data: PreparedTask, split: Split, rows: Indices, shared: Pass
) -> tuple[Indices, tuple[Tensor, ...]]:
    """Compute the layers that passes skip for the planned ones of `rows`; return those rows and their outputs."""
    chosen = rows[shared.shares[0].positions]
    inputs = _join([data.collate(split, chosen).inputs], shared.width, model)
    on_device = {name: value.to(model.device) for name, value in inputs.items()}
    return chosen, prefix.compute(on_device, data.lengths(split)[chosen])


def _parts(packed_model: PackedModel, shared: Pass, reads: Reads) -> list[_Part]:
    indices = {slot.name: index for index, slot in enumerate(packed_model.slots)}
    parts = []
    for share in shared.shares:
        trial = str(share.trial)
        request, slot = reads[trial], packed_model.slots[indices[trial]]
        rows = request.rows[share.positions]
        parts.append(_Part(indices[trial], trial, slot.data, request, rows))
    return parts


def _row_map(parts: list[_Part], sizes: list[int], device: torch.device) -> SlotRowMap:
    """Return whose the rows of a pass are, or its reads: so many of each part, one part after the other."""
    edges = np.cumsum([0, *sizes]).tolist()
    segments = [RowSegment(part.slot, a, b) for part, a, b in zip(parts, edges[:-1], edges[1:], strict=True)]
    return SlotRowMap(segments, device)


def _join(inputs: list[dict[str, Tensor]], width: int, model: PreTrainedModel) -> dict[str, Tensor]:
    return joined(inputs, width, int(model.config.pad_token_id), padding_side(model.config))


def _positions(batches: list[Batch], width: int, side: str) -> Tensor | None:
    """Return row and column of each read among the rows of these batches, (M, 2); None where a head reads."""
    positions, start = [], 0
    for batch in batches:
        if batch.reads is None:
            return None
        more = width - batch.inputs["input_ids"].shape[1] if side == "left" else 0
        positions.append(batch.reads + batch.reads.new_tensor([start, more]))
        start += len(batch.counts)
    return torch.cat(positions)


def _evened(positions: Tensor | None, sizes: list[int], most: int) -> tuple[Tensor | None, list[int]]:
    """Repeat the last read until their number is one of a few: a CPU's matrix kernels are built for each shape.

    Nothing looks at what is computed for the repeats.

    Args:
        positions: Of the reads, (M, 2).
        sizes: How many of them each part has.
        most: All positions of the pass.
    """
    if positions is None:
        return None, sizes
    more = max(0, round_up(len(positions), most) - len(positions))
    return torch.cat([positions, positions[-1:].expand(more, 2)]), [*sizes[:-1], sizes[-1] + more]


def _reduced(groups: list[list[_Part]], batches: list[Batch], outputs: PassOutputs) -> list[Reduced]:
    reduced, start = [], 0
    for group, batch in zip(groups, batches, strict=True):
        num_outputs = group[0].data.kind.model.num_outputs
        num_reads = len(batch.counts) if batch.reads is None else len(batch.reads)
        read = outputs.read[start : start + num_reads]
        if num_outputs is not None:
            read = read[:, :num_outputs]
        parts = group[0].request.reduce(PassOutputs(read, outputs.project), batch)
        trials = tuple((part.trial, len(part.rows)) for part in group)
        reduced.append(Reduced(trials, parts))
        start += num_reads
    return reduced
