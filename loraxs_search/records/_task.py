"""The task and where its data come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_search.records._words import Direction, Split, TaskKind


@dataclass(frozen=True)
class DataSource:
    """Where a task's rows come from: the hub (`hub`, `config`, `revision`) or local `data_files`, never both.

    Args:
        data_files: Split name to absolute path (json/jsonl/csv/parquet, optionally gzipped).
        splits: Our split names (train, validation, test) to the source's; missing ones are carved.
    """

    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    data_files: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[Split, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What is learnt: rows, columns, labels and how an answer is scored.

    Args:
        labels: Label names in id order; empty for regression.
        metrics: Every metric reported; `metric` is the one searched for and is among them.
        max_length: Longest sequence in tokens; longer ones are truncated.
        validation_rows: At most this many validation rows are scored at each report; None means all.
    """

    name: str
    kind: TaskKind
    source: DataSource
    text: str
    label: str
    metric: str
    direction: Direction
    metrics: tuple[str, ...]
    text_pair: str | None = None
    labels: tuple[str, ...] = ()
    max_length: int = 128
    validation_rows: int | None = None
