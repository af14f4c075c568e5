"""One pass over a frozen base for rows of many adapters: packs train with it, banks answer with it.

A method hands in what it adds to a layer, see `_base.py`; nothing here knows a method.
"""

from __future__ import annotations

from loraxs_search.multiplexed._base import LayerRows, LayerUpdate, SlotUpdates, TrainableUpdate
from loraxs_search.multiplexed.head import AdaptedHead, HeadState
from loraxs_search.multiplexed.linear import AdaptedLinear
from loraxs_search.multiplexed.row_map import PassContext, RowMap, RowRun, RowSegment, SlotRowMap, segments_of
from loraxs_search.multiplexed.trained_linear import TrainedLinear

__all__ = [
    "AdaptedHead",
    "AdaptedLinear",
    "HeadState",
    "LayerRows",
    "LayerUpdate",
    "PassContext",
    "RowMap",
    "RowRun",
    "RowSegment",
    "SlotRowMap",
    "SlotUpdates",
    "TrainableUpdate",
    "TrainedLinear",
    "segments_of",
]
