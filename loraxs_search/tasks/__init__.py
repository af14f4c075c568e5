"""What is learnt: the rows, their tokens and batches, and how an answer is scored.

The metric table and the batch plans need neither torch nor `datasets`; the other names
load them on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from loraxs_search.tasks.data_warnings import data_warnings, overlap_counts

if TYPE_CHECKING:
    from loraxs_search.tasks._labels import finite_number
    from loraxs_search.tasks._located import locate_for
    from loraxs_search.tasks._preview import Preview, preview
    from loraxs_search.tasks._rows import fixed_subset
    from loraxs_search.tasks.batch import Batch, RowSource
    from loraxs_search.tasks.batches import TrainingBatches, batch_at, epoch_batches, eval_batches
    from loraxs_search.tasks.encoded import EncodedRows
    from loraxs_search.tasks.kinds import TaskKind, checked, kind_of
    from loraxs_search.tasks.metrics import METRICS, Metric
    from loraxs_search.tasks.prepared import PreparedTask, TaskData, encode, load_data, prepare

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
    "batch_at",
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

_HOMES = {
    "METRICS": "metrics",
    "Batch": "batch",
    "EncodedRows": "encoded",
    "Metric": "metrics",
    "PreparedTask": "prepared",
    "RowSource": "batch",
    "TaskData": "prepared",
    "TaskKind": "kinds",
    "TrainingBatches": "batches",
    "batch_at": "batches",
    "checked": "kinds",
    "encode": "prepared",
    "epoch_batches": "batches",
    "eval_batches": "batches",
    "finite_number": "_labels",
    "fixed_subset": "_rows",
    "kind_of": "kinds",
    "load_data": "prepared",
    "locate_for": "_located",
    "prepare": "prepared",
    "Preview": "_preview",
    "preview": "_preview",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
