"""The side on which rows are padded: where the head reads the last position, it must not be padding."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import pad
from transformers import PretrainedConfig

Side = Literal["left", "right"]


def padding_side(config: PretrainedConfig) -> Side:
    """Return the side on which rows of a base are padded: right, but left for heads like XLNet's."""
    return "left" if getattr(config, "summary_type", None) == "last" else "right"


def widened(rows: Tensor, width: int, fill: int, side: Side) -> Tensor:
    """Return rows (n, T) padded to (n, width)."""
    more = width - rows.shape[1]
    return pad(rows, (more, 0) if side == "left" else (0, more), value=fill) if more else rows
