"""The side on which rows are padded: where the head reads the last position, it must not be padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PretrainedConfig

Side = Literal["left", "right"]


def padding_side(config: PretrainedConfig) -> Side:
    """Return the side on which rows of a base are padded: right, but left for heads like XLNet's."""
    return "left" if getattr(config, "summary_type", None) == "last" else "right"


def joined(inputs: Sequence[Mapping[str, Tensor]], width: int, pad_id: int, side: Side) -> dict[str, Tensor]:
    """Return the inputs of several batches as those of one, its rows padded to `width` tokens."""
    fill = {"input_ids": pad_id}
    padded = [{name: _widened(v, width, fill.get(name, 0), side) for name, v in part.items()} for part in inputs]
    return padded[0] if len(padded) == 1 else {name: torch.cat([part[name] for part in padded]) for name in padded[0]}


def _widened(rows: Tensor, width: int, fill: int, side: Side) -> Tensor:
    """Return rows (n, T) padded to (n, width)."""
    more = width - rows.shape[1]
    return pad(rows, (more, 0) if side == "left" else (0, more), value=fill) if more else rows
