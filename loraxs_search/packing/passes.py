"""One pass over the base: rows of several slots in, each slot's logits and losses out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from loraxs_search.base_model import padding_side, widened
from loraxs_search.multiplexed import RowSegment, SlotRowMap
from loraxs_search.packing.packed_model import PackedModel
from loraxs_search.packing.plan import Indices, Pass
from loraxs_search.packing.prefix_cache import PrefixCache
from loraxs_search.records import Split
from loraxs_search.tasks import PreparedTask

Rows = Mapping[str, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Output:
    """What a pass computed for neighbouring rows of one task.

    Args:
        trials: The slots' ids with their number of rows, in order.
        logits: Shape (n, labels), float32.
        losses: Shape (n,), float32, attached to the graph.
    """

    trials: tuple[tuple[str, int], ...]
    logits: Tensor
    losses: Tensor

    def detached(self) -> Output:
        """Return the numbers without the graph."""
        return replace(self, losses=self.losses.detach())

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Cut a tensor of n rows into each trial's."""
        parts: tuple[Tensor, ...] = torch.split(tensor, [count for _, count in self.trials])
        return parts

    def per_row(self, value: Callable[[str], float]) -> Tensor:
        """Return each row's trial's value, shape (n,), float32."""
        values = [np.full(count, value(trial), dtype=np.float32) for trial, count in self.trials]
        return torch.from_numpy(np.concatenate(values)).to(self.losses.device)


def run_pass(
    model: PreTrainedModel, seating: PackedModel, shared: Pass, split: Split, rows: Rows, lane: int
) -> list[Output]:
    """Compute a planned pass in a lane; `rows` are the row indices of each trial's demand."""
    device = next(model.parameters()).device
    seats = {slot.name: seat for seat, slot in enumerate(seating.slots)}
    chosen = [(seats[str(share.trial)], rows[str(share.trial)][share.positions]) for share in shared.shares]
    groups = [(data, list(group)) for data, group in groupby(chosen, key=lambda part: seating.slots[part[0]].data)]
    parts = [(data, np.concatenate([indices for _, indices in group])) for data, group in groups]
    batches = [data.collate(split, indices) for data, indices in parts]
    inputs = _joined([batch.inputs for batch in batches], shared.width, model.config)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    computing = seating.context.computing(_row_map(chosen, device), lane)
    with computing, seating.prefix.skipped(parts, split, inputs):
        logits = model(**inputs).logits.float()
    outputs, start = [], 0
    for (data, group), batch in zip(groups, batches, strict=True):
        part = logits[start : start + len(batch.labels), : data.head.num_labels]
        trials = tuple((seating.slots[seat].name, len(indices)) for seat, indices in group)
        outputs.append(Output(trials, part.detach(), data.head.loss(part, batch.labels.to(device))))
        start += len(batch.labels)
    return outputs


def run_prefix(
    model: PreTrainedModel, prefix: PrefixCache, data: PreparedTask, split: Split, rows: Indices, shared: Pass
) -> tuple[Indices, tuple[Tensor, ...]]:
    """Compute the layers that passes skip for the planned ones of `rows`; return those rows, and what leaves each."""
    chosen = rows[shared.shares[0].positions]
    inputs = _joined([data.collate(split, chosen).inputs], shared.width, model.config)
    on_device = {name: value.to(model.device) for name, value in inputs.items()}
    return chosen, prefix.compute(on_device, data.lengths(split)[chosen])


def _row_map(chosen: list[tuple[int, npt.NDArray[np.int64]]], device: torch.device) -> SlotRowMap:
    edges = np.cumsum([0, *(len(indices) for _, indices in chosen)]).tolist()
    segments = [RowSegment(slot, a, b) for (slot, _), a, b in zip(chosen, edges[:-1], edges[1:], strict=True)]
    return SlotRowMap(segments, device)


def _joined(inputs: list[dict[str, Tensor]], width: int, config: PretrainedConfig) -> dict[str, Tensor]:
    """Stack the inputs of several tasks, padded to `width` tokens on the side where the base takes padding."""
    fill, side = {"input_ids": int(config.pad_token_id)}, padding_side(config)
    padded = [{k: widened(v, width, fill.get(k, 0), side) for k, v in part.items()} for part in inputs]
    return padded[0] if len(padded) == 1 else {k: torch.cat([part[k] for part in padded]) for k in padded[0]}
