"""One pass over the base: computes rows of several requests, and reduces what their tasks read of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.head import head_names
from loraxs_search.base_model.reading import Projection, joined, last_states, padding_side
from loraxs_search.engine.layers import PassContext, RowMap
from loraxs_search.engine.planning import Indices, Pass, round_up
from loraxs_search.engine.prefix_cache import CachedRows, PrefixCache
from loraxs_search.records.literals import Split
from loraxs_search.tasks.encoded import Batch, RowSource
from loraxs_search.tasks.kinds import ForwardRequest, PassOutputs, Reduce

Owners = npt.NDArray[np.integer]  # whose adapter each row has, (n,), by numbers that the base knows


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the base that a model is, or that carries its adapters."""
    return cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)


class AdaptedBase:
    """A base whose rows all have one adapter, as PEFT puts it on, or none. Subclasses know many.

    Several threads may compute passes at the same time; `begin` and `checkpoint_gradients` are called between passes.

    Args:
        model: The base as its task loads it, with or without adapters on it.
        context: Where adapted layers find the rows of their pass; None if all rows have one adapter.
    """

    prefix: PrefixCache | None = None

    def __init__(self, model: nn.Module, context: PassContext[Any] | None = None) -> None:
        self.model, self.context = model, context

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return next(self.model.parameters()).device

    @property
    def shares_beginnings(self) -> bool:
        """Whether what all rows of one request begin with is computed once; under a head, rows are read whole."""
        return not head_names(base_of(self.model))

    def begin(self) -> None:
        """Read the adapters' current numbers, and set gradients to zero."""

    def row_map(self, owners: Owners) -> RowMap[Any] | None:
        """Return the rows of a pass; those of one owner stand side by side."""
        return None

    def computing(self, row_map: RowMap[Any] | None, worker: int = 0) -> AbstractContextManager[None]:
        """Set the rows of the pass that this thread computes, until the context ends."""
        if self.context is None or row_map is None:
            return nullcontext()
        return self.context.computing(row_map, worker)

    @contextmanager
    def computing_whole(self, row_map: RowMap[Any] | None, worker: int = 0) -> Iterator[None]:
        """The same for passes that skip no layer, since a cache needs the keys and values of all."""
        with self.prefix.paused() if self.prefix else nullcontext(), self.computing(row_map, worker):
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
    positions, sizes = _positions(batches, shared.width, padding_side(config)), [part.num_reads for part in parts]
    if positions is not None:
        # The last read is repeated, and not used, until their number is one of a few: a CPU's matrix kernels are built
        # for each shape.
        more = max(0, round_up(len(positions), shared.num_tokens) - len(positions))
        positions, sizes = torch.cat([positions, positions[-1:].expand(more, 2)]), [*sizes[:-1], sizes[-1] + more]
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
