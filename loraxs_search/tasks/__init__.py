"""What is learnt: the rows, their tokens and batches, and how an answer is scored.

Names are loaded on first use: the metric table and the batch plans need neither torch nor `datasets`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraxs_search.tasks.batch import Batch, RowSource
    from loraxs_search.tasks.encoded import EncodedRows, TrainingBatches, epoch_batches, eval_batches
    from loraxs_search.tasks.kinds import TaskKind, checked, kind_of
    from loraxs_search.tasks.kinds._labelled import finite_number
    from loraxs_search.tasks.metrics import METRICS, Metric
    from loraxs_search.tasks.prepared import (
        PreparedTask,
        Preview,
        TaskData,
        encode,
        load_data,
        locate_for,
        prepare,
        preview,
    )
    from loraxs_search.tasks.read import fixed_subset
    from loraxs_search.tasks.report import data_warnings, overlap_counts

__all__ = [
    "METRICS",
    "Batch",
    "EncodedRows",
    "Metric",
    "PreparedTask",
    "Preview",
    "RowSource",
    "TaskData",
    "TaskKind",
    "TrainingBatches",
    "checked",
    "data_warnings",
    "encode",
    "epoch_batches",
    "eval_batches",
    "finite_number",
    "fixed_subset",
    "kind_of",
    "load_data",
    "locate_for",
    "overlap_counts",
    "prepare",
    "preview",
]

_NAMES = {
    "batch": (
        "Batch",
        "RowSource",
    ),
    "encoded": (
        "EncodedRows",
        "TrainingBatches",
        "epoch_batches",
        "eval_batches",
    ),
    "kinds": (
        "TaskKind",
        "checked",
        "kind_of",
    ),
    "kinds._labelled": ("finite_number",),
    "metrics": (
        "METRICS",
        "Metric",
    ),
    "prepared": (
        "PreparedTask",
        "Preview",
        "TaskData",
        "encode",
        "load_data",
        "locate_for",
        "prepare",
        "preview",
    ),
    "read": ("fixed_subset",),
    "report": (
        "data_warnings",
        "overlap_counts",
    ),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
