"""The side on which rows are padded: where the head reads the last position, it must not be padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
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
    """Return the inputs of several batches as those of one, its rows padded to `width` tokens.

    What some batches lack, such as numbers of segments, is zero in their rows, as models take it where it is missing.
    """
    fill = {"input_ids": pad_id}
    padded = [{name: _widened(v, width, fill.get(name, 0), side) for name, v in part.items()} for part in inputs]
    if len(padded) == 1:
        return padded[0]
    zeros = [torch.zeros_like(part["input_ids"]) for part in padded]
    return {
        name: torch.cat([part.get(name, zero) for part, zero in zip(padded, zeros, strict=True)])
        for name in dict.fromkeys(chain.from_iterable(padded))
    }


def _widened(rows: Tensor, width: int, fill: int, side: Side) -> Tensor:
    """Return rows (n, T) padded to (n, width)."""
    more = width - rows.shape[1]
    return pad(rows, (more, 0) if side == "left" else (0, more), value=fill) if more else rows
