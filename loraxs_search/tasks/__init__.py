"""What is learnt: the catalogue, the rows, their tokens and batches, and how an answer is scored.

The catalogue, the metric table and the batch plans need neither torch nor `datasets`; the other names load them on
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from loraxs_search.tasks.catalogue import catalogue_names, catalogue_task
from loraxs_search.tasks.data_warnings import data_warnings, overlap_counts
from loraxs_search.tasks.metrics import METRICS, Metric, metric_fault

if TYPE_CHECKING:
    from loraxs_search.tasks._located import locate_for
    from loraxs_search.tasks._rows import fixed_subset
    from loraxs_search.tasks.answers import answer
    from loraxs_search.tasks.batches import TrainingBatches, batch_at, epoch_batches, eval_batches
    from loraxs_search.tasks.kinds import TaskHead, head_for
    from loraxs_search.tasks.prepared import Batch, PreparedTask, TaskData, encode, load_data, prepare

__all__ = [
    "METRICS",
    "Batch",
    "Metric",
    "PreparedTask",
    "TaskData",
    "TaskHead",
    "TrainingBatches",
    "answer",
    "batch_at",
    "catalogue_names",
    "catalogue_task",
    "data_warnings",
    "encode",
    "epoch_batches",
    "eval_batches",
    "fixed_subset",
    "head_for",
    "load_data",
    "locate_for",
    "metric_fault",
    "overlap_counts",
    "prepare",
]

_HOMES = {
    "Batch": "prepared",
    "PreparedTask": "prepared",
    "TaskData": "prepared",
    "TaskHead": "kinds",
    "TrainingBatches": "batches",
    "answer": "answers",
    "batch_at": "batches",
    "encode": "prepared",
    "epoch_batches": "batches",
    "eval_batches": "batches",
    "fixed_subset": "_rows",
    "head_for": "kinds",
    "load_data": "prepared",
    "locate_for": "_located",
    "prepare": "prepared",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
