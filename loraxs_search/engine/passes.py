"""One pass over the base: computes rows of several requests, and reduces what their tasks read of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraxs_search.base_model.head import head_names
from loraxs_search.base_model.reading import Projection, joined, last_states, padding_side
from loraxs_search.engine.base import AdaptedBase, base_of
from loraxs_search.engine.planning import Indices, Pass, round_up
from loraxs_search.engine.prefix_cache import CachedRows, PrefixCache
from loraxs_search.records.literals import Split
from loraxs_search.tasks.batch import Batch, RowSource
from loraxs_search.tasks.kinds import ForwardRequest, PassOutputs, Reduce


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


@dataclass(frozen=True)
class Reduced:
    """Results of neighbouring rows that are reduced together: those of one task with one purpose.

    Args:
        names: The requesters' names with their number of rows, in order.
        parts: Results of `ForwardRequest.reduce`, each with the n rows first.
    """

    names: tuple[tuple[str, int], ...]
    parts: tuple[Tensor, ...]

    def detached(self) -> Reduced:
        """Return the same numbers, detached from the graph."""
        return replace(self, parts=tuple(part.detach() for part in self.parts))

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
    config, device = base_of(base.model).config, base.device
    parts = [_Part(str(share.name), requesters, reads, share.positions) for share in shared.shares]
    groups = [list(group) for _, group in groupby(parts, key=lambda part: part.purpose)]
    rows = [np.concatenate([part.rows for part in group]) for group in groups]
    sources = [(group[0].requester.data, group[0].request.source) for group in groups]
    batches = [data.collate(source, own).to(device) for (data, source), own in zip(sources, rows, strict=True)]
    inputs = _join([batch.inputs for batch in batches], shared.width, base_of(base.model))
    positions = _positions(batches, shared.width, padding_side(config))
    positions, sizes = _evened(positions, [part.num_reads for part in parts], shared.num_tokens)
    owners, num_rows = [part.requester.owner for part in parts], [len(part.rows) for part in parts]
    known = [CachedRows(*source, own) for source, own in zip(sources, rows, strict=True)]
    skipped = base.prefix.skipped(known, inputs) if base.prefix else nullcontext()
    with (
        base.computing(base.row_map(np.repeat(owners, num_rows)), worker),
        skipped,
        base.reading(positions, shared.width, np.repeat(owners, sizes)) as is_cut,
    ):
        outputs = forward(base.model, inputs, positions, is_cut=is_cut)
    return _reduced(groups, batches, outputs)


def run_prefix(
    base: AdaptedBase, prefix: PrefixCache, data: RowSource, split: Split, rows: Indices, shared: Pass
) -> tuple[Indices, tuple[Tensor, ...]]:
    """Compute the layers that passes skip for the planned ones of `rows`; return those rows and their outputs."""
    chosen = rows[shared.shares[0].positions]
    inputs = _join([data.collate(split, chosen).inputs], shared.width, base_of(base.model))
    on_device = {name: value.to(base.device) for name, value in inputs.items()}
    return chosen, prefix.compute(on_device, data.lengths(split)[chosen])


# ---- inside ----------------------------------------------------------------------------------------------------------
class _Part:
    """The rows that one requester has in a pass."""

    def __init__(self, name: str, requesters: Requesters, reads: ForwardRequests, positions: Indices) -> None:
        self.name, self.requester, self.request = name, requesters[name], reads[name]
        self.rows = self.request.rows[positions]

    @property
    def purpose(self) -> tuple[RowSource, Reduce, object]:
        """Rows of equal purpose are collated and reduced together."""
        source = self.request.source
        return self.requester.data, self.request.reduce, source if isinstance(source, str) else id(source)

    @property
    def num_reads(self) -> int:
        return int(self.requester.data.encoded(self.request.source).counts(self.rows).sum())


def _join(inputs: list[dict[str, Tensor]], width: int, model: PreTrainedModel) -> dict[str, Tensor]:
    return joined(inputs, width, int(model.config.pad_token_id), padding_side(model.config))


def _positions(batches: list[Batch], width: int, side: str) -> Tensor | None:
    """Return row and column of each read among the rows of these batches, (M, 2); None if a head reads."""
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

    What is computed for the repeats is not used.

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
        num_outputs = group[0].requester.num_outputs
        num_reads = len(batch.counts) if batch.reads is None else len(batch.reads)
        read = outputs.read[start : start + num_reads]
        if num_outputs is not None:
            read = read[:, :num_outputs]
        parts = group[0].request.reduce(PassOutputs(read, outputs.project), batch)
        reduced.append(Reduced(tuple((part.name, len(part.rows)) for part in group), parts))
        start += num_reads
    return reduced
